"""What a training step costs as ranks are added: processor time on loopback, messages, and 512 GPUs on paper.

    python -m benchmarks.scaling                               # about five minutes on two idle cores
    python -m benchmarks.scaling --stages 2 --ranks 1 2        # half a minute

The trainer's engine takes steps of a LLaMA of 4M parameters, with the same batch on every rank however many
there are, one thread per rank, bf16 (fp32 at ZeRO-0, as the trainer asks), one micro batch. ZeRO-3 may keep
as large a part of the weights gathered as of a 7B model. Three tables:

**Loopback.** Wall clock and CPU seconds of a step, and CPU seconds per rank over those of a single rank: what
DeepSpeed, the collectives and the kernel's sockets add. With more ranks than cores, ranks wait for a core, so
the wall clock grows with the ranks' work, and says nothing of a cluster; CPU seconds do not have this fault.

**Messages.** Every collective of one step is counted below torch.distributed, at the process group. Its bytes
are those of the whole message: the tensor of an all-reduce or a broadcast, the output of an all-gather, the
input of a reduce-scatter. A ring sends of it per rank (`RING`), with W ranks: all-reduce 2 (W - 1)/W,
all-gather and reduce-scatter (W - 1)/W, broadcast and reduce 1. By the ZeRO paper (Rajbhandari et al. 2020,
arXiv 1910.02054, section 7) that is 2 elements per parameter at ZeRO 0 to 2 and 3 at ZeRO-3.

**Paper.** Seconds of a step on many GPUs: messages by RING, by the bytes per parameter that were measured at
the largest number of ranks, over the bandwidth of a collective that crosses nodes,
min(inside, GPUs per node · between): rings run side by side, and each leaves the node through another network
card. Computing: (6 N + 12 · L · d · s) · tokens per GPU / (peak · MFU). A step takes at least the larger of
both, if they overlap perfectly, and at most the sum. Latency is not in it; stragglers are not, either.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import preset_of
from benchmarks.ranks import join, leave, rank_folder, run_ranks, surroundings

WARM_UP = 2

RING: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all-gather": lambda ranks: (ranks - 1) / ranks,
    "reduce-scatter": lambda ranks: (ranks - 1) / ranks,
    "all-to-all": lambda ranks: (ranks - 1) / ranks,
    "broadcast": lambda ranks: 1.0,
    "reduce": lambda ranks: 1.0,
}
"""Bytes that a rank sends per byte of a message, by the number of ranks."""

CALLS = {
    "allreduce": ("all-reduce", 0),
    "allreduce_coalesced": ("all-reduce", 0),
    "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0),
    "allgather": ("all-gather", 0),
    "allgather_coalesced": ("all-gather", 0),
    "_allgather_base": ("all-gather", 0),
    "all_gather_single": ("all-gather", 0),
    "allgather_into_tensor_coalesced": ("all-gather", 0),
    "reduce_scatter": ("reduce-scatter", 1),
    "_reduce_scatter_base": ("reduce-scatter", 1),
    "reduce_scatter_single": ("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce-scatter", 1),
    "alltoall_base": ("all-to-all", 1),
    "alltoall": ("all-to-all", 1),
}
"""Methods of a process group: the kind, and which argument is the whole message."""

MODELS = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""LLaMA-2's."""


@dataclass(frozen=True)
class Case:
    """What is trained."""

    stage: int
    ranks: int
    tokens: int
    """Of a step, on each rank."""
    steps: int
    zero: dict[str, Any]
    """Fields of zero_optimization beside the preset's."""


@dataclass(frozen=True)
class Measured:
    """What a step took."""

    wall_s: float
    cpu_s: float
    """User and system, of all ranks."""
    parameters: int
    calls: dict[str, int]
    """Collectives of a step on a rank, by kind."""
    message_bytes: dict[str, int]
    """Their whole messages, by kind."""


@dataclass(frozen=True)
class Cluster:
    """GPUs, and what is assumed of them."""

    gpus: int
    per_node: int
    between: float
    """Bytes per second and GPU from node to node."""
    inside: float
    """Bytes per second and GPU within a node."""
    peak_flops: float
    mfu: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second that a rank of a collective over all GPUs sends."""
        if self.gpus <= self.per_node:
            return self.inside
        return min(self.inside, self.per_node * self.between)


def main() -> int:
    args = options()
    if args.worker:
        return work(Case(**json.loads(args.worker)))
    results = []
    for stage in args.stages:
        for ranks in args.ranks:
            case = Case(stage, ranks, args.tokens, args.steps, args.zero)
            found = together(
                run_ranks("benchmarks.scaling", ["--worker", json.dumps(asdict(case))], ranks, 1)
            )
            print(f"ZeRO-{stage}, {ranks} ranks: {1e3 * found.wall_s:.0f} ms", file=sys.stderr)
            results.append((case, found))
    cluster = Cluster(
        args.gpus, args.per_node, args.between * 1e9, args.inside * 1e9, args.peak * 1e12, args.mfu
    )
    if args.out:
        rows = [{**asdict(case), **asdict(found)} for case, found in results]
        tree = {**surroundings(), "cluster": asdict(cluster), "results": rows}
        args.out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    print(loopback(results), messages(results), paper(results, cluster, args.batch), sep="\n\n")
    return 0


def options() -> argparse.Namespace:
    """The command line; `--worker` is one rank of one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=[0, 1, 2, 3])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--tokens", type=int, default=256, help="of a step, on each rank")
    parser.add_argument("--steps", type=int, default=6, help="measured, after two to warm up")
    parser.add_argument("--zero", type=json.loads, default={}, help="fields of zero_optimization, as JSON")
    parser.add_argument("--gpus", type=int, default=512)
    parser.add_argument("--per-node", type=int, default=8, help="GPUs, each with a network card")
    parser.add_argument("--between", type=float, default=50, help="GB/s per GPU between nodes")
    parser.add_argument("--inside", type=float, default=450, help="GB/s per GPU within a node")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a GPU in bf16 (H100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of it that computing reaches")
    parser.add_argument("--batch", type=int, default=4_194_304, help="tokens of a step on the GPUs")
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def together(found: list[dict[str, Any]]) -> Measured:
    """One measurement of what the ranks left; every rank sends as many messages as the others."""
    return Measured(
        wall_s=max(one["wall_s"] for one in found),
        cpu_s=sum(one["cpu_s"] for one in found),
        parameters=found[0]["parameters"],
        calls=found[0]["calls"],
        message_bytes=found[0]["message_bytes"],
    )


def work(case: Case) -> int:
    """One rank: train, and leave what a step took."""
    from benchmarks.gpu import engines
    from benchmarks.peer import Clock
    from trainer.machine import memory
    from trainer.model.size import parameters

    memory.keep_freed_memory()
    join(case.ranks)
    folder = rank_folder()
    folder.mkdir()
    shape, vocab_size = engines.Shape("4M", 256, 688, 4, 4), 2048
    count = parameters(shape.config(vocab_size))
    setting = engines.Setting(
        shape,
        vocab_size,
        micro_batch_size=1,
        accumulation=1,
        seq_len=case.tokens,
        dtype="bf16" if case.stage else "fp32",
        preset=str(preset_of(f"zero{case.stage}", case.zero, count, folder)),
        ranks=case.ranks,
    )
    store = engines.make_noise(folder, setting.vocab_size, 40 * setting.tokens_per_step * case.ranks)
    ours = engines.Ours(setting, folder, store)
    ours.steps(WARM_UP)
    walls, cpus = [], []
    for _ in range(case.steps):
        clock = Clock()
        ours.steps(1)
        wall, cpu = clock.read()
        walls.append(wall)
        cpus.append(cpu)
    calls, message_bytes = counted(lambda: ours.steps(1))
    leave(
        {
            "wall_s": statistics.median(walls),
            "cpu_s": statistics.mean(cpus),  # the clock of CPU time ticks
            "parameters": count,
            "calls": calls,
            "message_bytes": message_bytes,
        }
    )
    return 0


def counted(step: Callable[[], Any]) -> tuple[Counter[str], Counter[str]]:
    """Return how many collectives `step` begins on this rank, and the bytes of their messages, by kind."""
    from torch.distributed import ProcessGroup

    calls: Counter[str] = Counter()
    sent: Counter[str] = Counter()

    def counting(true: Callable[..., Any], kind: str, place: int) -> Callable[..., Any]:
        def call(group: Any, *given: Any, **named: Any) -> Any:
            calls[kind] += 1
            sent[kind] += bytes_of(given[place])
            return true(group, *given, **named)

        return call

    # From `vars`, since a method of a C++ class that is read by its name is no longer bound to an object.
    saved = {name: vars(ProcessGroup)[name] for name in CALLS if name in vars(ProcessGroup)}
    for name, (kind, place) in CALLS.items():
        if name in saved:
            setattr(ProcessGroup, name, counting(getattr(ProcessGroup, name), kind, place))
    try:
        step()
    finally:
        for name, true in saved.items():
            setattr(ProcessGroup, name, true)
    return calls, sent


def bytes_of(message: Any) -> int:
    """Bytes of a tensor, or of all tensors in lists of lists."""
    if isinstance(message, list | tuple):
        return sum(bytes_of(one) for one in message)
    return int(message.numel() * message.element_size())


def sent_bytes(message_bytes: Mapping[str, float], ranks: int) -> float:
    """Bytes that each rank of a ring sends for these messages."""
    return sum(size * RING[kind](ranks) for kind, size in message_bytes.items())


def loopback(results: list[tuple[Case, Measured]]) -> str:
    """Markdown: time of a step against the number of ranks."""
    cores = os.cpu_count() or 1
    lines = [
        f"| ZeRO | ranks | wall, ms | CPU, ms per rank | by one rank's | of {cores} cores in use |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    alone = {case.stage: found.cpu_s for case, found in results if case.ranks == 1}
    for case, found in results:
        each = found.cpu_s / case.ranks
        more = f"{each / alone[case.stage]:.2f}x" if case.stage in alone else "–"
        cells = [str(case.stage), str(case.ranks), f"{1e3 * found.wall_s:.0f}", f"{1e3 * each:.0f}", more]
        cells.append(f"{100 * found.cpu_s / found.wall_s / cores:.0f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def messages(results: list[tuple[Case, Measured]]) -> str:
    """Markdown: collectives of a step, and bytes per parameter."""
    kinds = [kind for kind in RING if any(kind in found.calls for _, found in results)]
    head = [f"{kind}, calls | bytes per parameter" for kind in kinds]
    lines = [
        f"| ZeRO | ranks | {' | '.join(head)} | sent per rank and parameter, bytes |",
        "|---:|---:|" + "---:|---:|" * len(kinds) + "---:|",
    ]
    for case, found in results:
        cells = [str(case.stage), str(case.ranks)]
        for kind in kinds:
            size = found.message_bytes.get(kind, 0) / found.parameters
            cells += [str(found.calls.get(kind, 0)), f"{size:.2f}"]
        sent = sent_bytes(found.message_bytes, case.ranks) / found.parameters
        lines.append(f"| {' | '.join([*cells, f'{sent:.2f}'])} |")
    return "\n".join(lines)


def paper(results: list[tuple[Case, Measured]], cluster: Cluster, batch: int) -> str:
    """Markdown: seconds of a step on the cluster, at each ZeRO stage that was measured with most ranks."""
    from trainer.model.size import flops_per_token, parameters

    lines = [
        f"| model on {cluster.gpus} GPUs | ZeRO | GB sent per GPU | communication, s | computing, s "
        "| MFU if all of it is hidden | if none |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    most = {case.stage: found for case, found in sorted(results, key=lambda one: one[0].ranks)}
    for name, shape in MODELS.items():
        config = {"model_type": "llama", "vocab_size": 55_296, **shape}
        flops = flops_per_token(config, 4096) * batch / cluster.gpus
        for stage, found in sorted(most.items()):
            per = {kind: size / found.parameters for kind, size in found.message_bytes.items()}
            sent = sent_bytes(per, cluster.gpus) * parameters(config)
            talk, work = sent / cluster.bandwidth, flops / (cluster.peak_flops * cluster.mfu)
            hidden, open_ = (
                flops / seconds / cluster.peak_flops for seconds in (max(talk, work), talk + work)
            )
            cells = [name, str(stage), f"{sent / 1e9:.0f}", f"{talk:.2f}", f"{work:.2f}"]
            lines.append(f"| {' | '.join([*cells, f'{100 * hidden:.0f} %', f'{100 * open_:.0f} %'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
