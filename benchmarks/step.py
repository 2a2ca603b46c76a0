"""A training step compared with transformers' `Trainer` and a bare PyTorch loop, by turns, on the CPU.

    python -m benchmarks.step                  # the README's numbers, about half an hour on two cores
    python -m benchmarks.step --turns 1 --only "small, 32,000 pieces, seq 512, 1 rank"        # two minutes
    python -m benchmarks.step --all            # every body with every vocabulary, length and world size

The same model, random weights, random tokens, batch, fp32, AdamW, clipping, ranks and DeepSpeed configuration
(ZeRO-2) for all; the bare loop uses no DeepSpeed and one rank. Every measurement is a process of its own, and
the contestants take turns, so that a machine that is busy at times slows all of them. Ratios are medians over
the turns' pairs.
MFU is the share of the rate of fp32 matrix products (2,048 cubed), measured in each process, that
6·N FLOPs per token (and 6·N + 12·L·d·s, with attention) make. Writes a JSON; prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import peer
from benchmarks.peer import Clock
from benchmarks.ranks import join, leave, rank_folder, run_ranks, surroundings

if TYPE_CHECKING:
    from benchmarks.gpu.engines import Setting, Shape

ROOT = Path(__file__).resolve().parents[1]

KINDS = ("rewarm", "rewarm, compiled", "Trainer", "Trainer, compiled", "bare loop")

BODIES = ("small", "large")
"""3M parameters without the embeddings, as in toy studies, and 57M, where the body does most of the work."""

VOCABULARIES, LENGTHS, RANKS = (32_000, 55_296), (512, 2_048), (1, 2)

CHOSEN = (
    ("small", 32_000, 512, 1),
    ("small", 55_296, 512, 1),
    ("small", 55_296, 2_048, 1),
    ("small", 55_296, 512, 2),
    ("large", 32_000, 512, 1),
    ("large", 55_296, 512, 1),
)
"""The cases without `--all`: the two that matter, and what changes with one thing at a time."""

WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """What is trained."""

    body: str
    vocab: int
    seq_len: int
    ranks: int
    micro_batch_size: int
    accumulation: int

    @property
    def name(self) -> str:
        """One line for it."""
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return f"{self.body}, {self.vocab:,} pieces, seq {self.seq_len:,}, {ranks}"


@dataclass(frozen=True)
class Measured:
    """What some steps of one process group took."""

    tokens_per_s: float
    cpu_s: float
    """User and system seconds per step, of all ranks."""
    peak_bytes: int
    """Resident, of the rank that held most, with the interpreter and libraries."""
    matmul_flops: float
    """Rate of fp32 matrix products in this process, per second."""
    loss: float
    """Nats per token of the last step."""


def main() -> int:
    args = options()
    if args.worker:
        return work(args)
    results: list[tuple[Case, dict[str, list[Measured]]]] = []
    for case in cases(args):
        print(f"# {case.name}", file=sys.stderr)
        turns: dict[str, list[Measured]] = {}
        results.append((case, turns))
        for _ in range(args.turns):
            for kind in args.kinds:
                if kind == "bare loop" and case.ranks > 1:
                    continue
                found = measured(case, kind, args.steps)
                print(f"{kind}: {found.tokens_per_s:,.0f} tokens/s, CPU {found.cpu_s:.2f} s", file=sys.stderr)
                turns.setdefault(kind, []).append(found)
                if args.out:  # after each one, so that a run that is cut off leaves what it found
                    write_json(args.out, results)
    print(table(results))
    return 0


def write_json(path: Path, results: list[tuple[Case, dict[str, list[Measured]]]]) -> None:
    """Write all that was measured until now, with the commit, the machine and the versions."""
    tree = {
        **surroundings(("torch", "deepspeed", "transformers", "accelerate")),
        "results": [
            {**asdict(case), "turns": {kind: [asdict(one) for one in found] for kind, found in turns.items()}}
            for case, turns in results
        ],
    }
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def options() -> argparse.Namespace:
    """The command line; `--worker` is one rank of one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every combination")
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", help="cases, by the names that the table gives them"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", type=int, default=4_096, help="of a step, over all ranks")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="measured, after two to warm up")
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    return parser.parse_args()


def cases(args: argparse.Namespace) -> list[Case]:
    """The cases to measure; a long sequence has fewer rows, so that the tokens of a step stay."""
    every = product(BODIES, VOCABULARIES, LENGTHS, RANKS)
    made = []
    for body, vocab, seq_len, ranks in every if args.all or args.only else CHOSEN:
        micro = max(1, args.tokens // (seq_len * ranks * args.accumulation))
        made.append(Case(body, vocab, seq_len, ranks, micro, args.accumulation))
    if not args.only:
        return made
    named = {case.name: case for case in made}
    if unknown := [name for name in args.only if name not in named]:
        raise SystemExit(f"--only {unknown[0]!r} is not one of the cases: {'; '.join(named)}")
    return [named[name] for name in args.only]


def measured(case: Case, kind: str, steps: int) -> Measured:
    """Train in new processes, one per rank."""
    told = ["--worker", json.dumps(asdict(case)), "--kind", kind, "--steps", str(steps)]
    found = run_ranks("benchmarks.step", told, case.ranks)
    return Measured(
        tokens_per_s=found[0]["tokens"] / max(one["seconds"] for one in found),
        cpu_s=sum(one["cpu_s"] for one in found) / steps,
        peak_bytes=max(one["peak_bytes"] for one in found),
        matmul_flops=statistics.mean(one["matmul_flops"] for one in found) * case.ranks,
        loss=found[0]["loss"],
    )


def work(args: argparse.Namespace) -> int:
    """One rank: train, and leave what it took in a file."""
    case = Case(**json.loads(args.worker))
    rate = matmul_flops()
    make = {"Trainer": trainer_steps, "rewarm": our_steps, "bare loop": bare_steps}[args.kind.split(",")[0]]
    seconds, cpu_s, loss = make(case, rank_folder(), args.steps, args.kind.endswith("compiled"))
    found = {
        "tokens": case.ranks * case.micro_batch_size * case.accumulation * case.seq_len * args.steps,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "matmul_flops": rate,
        "loss": loss,
    }
    leave(found)
    return 0


def matmul_flops() -> float:
    """FLOP/s of a square product in fp32, the best of five."""
    import torch

    left, right, product = (torch.ones(2048, 2048) for _ in range(3))
    took = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        took.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(took)


def setting_of(case: Case, compiled: bool = False) -> Setting:
    """The case as the engines of the GPU benchmark take it."""
    from benchmarks.gpu.engines import Setting

    return Setting(
        shape_of(case.body),
        case.vocab,
        micro_batch_size=case.micro_batch_size,
        accumulation=case.accumulation,
        seq_len=case.seq_len,
        dtype="fp32",
        ranks=case.ranks,
        compiled=compiled,
    )


def shape_of(body: str) -> Shape:
    """The LLaMA of this name."""
    from benchmarks.gpu.engines import Shape

    return {"small": Shape("small", 256, 688, 4, 4), "large": Shape("large", 768, 2048, 8, 12)}[body]


def our_steps(case: Case, folder: Path, steps: int, compiled: bool) -> tuple[float, float, float]:
    """The trainer's engine and loader."""
    from benchmarks.gpu import engines
    from trainer.machine.memory import keep_freed_memory

    keep_freed_memory()
    join(case.ranks)
    setting = setting_of(case, compiled)
    store = engines.make_noise(folder, case.vocab, 40 * setting.tokens_per_step * case.ranks)
    ours = engines.Ours(setting, folder, store)
    ours.steps(WARM_UP)
    clock = Clock()
    loss = ours.steps(steps).loss
    return *clock.read(), loss


def bare_steps(case: Case, folder: Path, steps: int, compiled: bool) -> tuple[float, float, float]:
    """A loop written by hand, without DeepSpeed."""
    import torch

    from benchmarks.gpu import engines

    torch.manual_seed(0)
    setting = setting_of(case)
    store = engines.make_noise(folder, case.vocab, 40 * setting.tokens_per_step)
    bare = engines.Bare(setting, folder, store)
    bare.steps(WARM_UP)
    clock = Clock()
    loss = bare.steps(steps).loss
    return *clock.read(), loss


def trainer_steps(case: Case, folder: Path, steps: int, compiled: bool) -> tuple[float, float, float]:
    """transformers' `Trainer` with the DeepSpeed configuration that our engine is given."""
    return peer.train(setting_of(case, compiled), folder, WARM_UP, steps)


def table(results: list[tuple[Case, dict[str, list[Measured]]]]) -> str:
    """Markdown: tokens per second, ratios to Trainer's, CPU seconds, memory, MFU."""
    from trainer.model.size import flops_per_token, matmul_parameters

    lines = [
        "| case | contestant | tokens/s | of Trainer's | by CPU time | peak GiB | of Trainer's "
        "| MFU 6N | with attention |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, turns in results:
        config = shape_of(case.body).config(case.vocab)
        for kind, found in turns.items():
            rate = statistics.median(one.tokens_per_s for one in found)
            ceiling = statistics.median(one.matmul_flops for one in found)
            cells = [case.name, kind, f"{rate:,.0f}"]
            cells += ratios(found, turns.get("Trainer"))
            cells += [
                f"{100 * 6 * matmul_parameters(config) * rate / ceiling:.0f} %",
                f"{100 * flops_per_token(config, case.seq_len) * rate / ceiling:.0f} %",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(found: list[Measured], peer: list[Measured] | None) -> list[str]:
    """Speed, speed by CPU time, peak memory, and its share of the peer's."""
    peak = statistics.median(one.peak_bytes for one in found)
    if peer is None:
        return ["–", "–", f"{peak / 2**30:.2f}", "–"]
    pairs = list(zip(found, peer, strict=False))
    speed = statistics.median(own.tokens_per_s / other.tokens_per_s for own, other in pairs)
    work = statistics.median(other.cpu_s / own.cpu_s for own, other in pairs)
    memory = statistics.median(own.peak_bytes / other.peak_bytes for own, other in pairs)
    return [f"{speed:.2f}x", f"{work:.2f}x", f"{peak / 2**30:.2f}", f"{memory:.2f}x"]


if __name__ == "__main__":
    sys.exit(main())
