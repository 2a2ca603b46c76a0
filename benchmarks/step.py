"""A training step compared with transformers' `Trainer` and a bare PyTorch loop, by turns, on the CPU.

    python -m benchmarks.step                  # the README's numbers, about half an hour on two cores
    python -m benchmarks.step --bodies small --vocab 32000 --seq-len 512 --ranks 1 --turns 1  # minutes

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
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.engines import Setting, Shape

ROOT = Path(__file__).resolve().parents[1]

KINDS = ("rewarm", "rewarm, compiled", "Trainer", "Trainer, compiled", "bare loop")

BODIES = ("small", "large")
"""3M parameters without the embeddings, as in toy studies, and 57M, where the body does most of the work."""

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
    results = []
    for case in cases(args):
        print(f"# {case.name}", file=sys.stderr)
        turns: dict[str, list[Measured]] = {}
        for _ in range(args.turns):
            for kind in args.kinds:
                if kind == "bare loop" and case.ranks > 1:
                    continue
                found = measured(case, kind, args.steps)
                print(f"{kind}: {found.tokens_per_s:,.0f} tokens/s, CPU {found.cpu_s:.2f} s", file=sys.stderr)
                turns.setdefault(kind, []).append(found)
        results.append((case, turns))
    tree = {
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers", "accelerate")},
        "results": [
            {**asdict(case), "turns": {kind: [asdict(one) for one in found] for kind, found in turns.items()}}
            for case, turns in results
        ],
    }
    if args.out:
        args.out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


def options() -> argparse.Namespace:
    """The command line; `--worker` is one rank of one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bodies", nargs="+", choices=BODIES, default=list(BODIES))
    parser.add_argument("--vocab", nargs="+", type=int, default=[32_000, 55_296])
    parser.add_argument("--seq-len", nargs="+", type=int, default=[512, 2_048])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", type=int, default=4_096, help="of a step, over all ranks")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="measured, after two to warm up")
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    return parser.parse_args()


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """All combinations; a long sequence has fewer rows, so that tokens per step stay."""
    for body in args.bodies:
        for vocab in args.vocab:
            for seq_len in args.seq_len:
                for ranks in args.ranks:
                    micro = max(1, args.tokens // (seq_len * ranks * args.accumulation))
                    yield Case(body, vocab, seq_len, ranks, micro, args.accumulation)


def measured(case: Case, kind: str, steps: int) -> Measured:
    """Train in new processes, one per rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="rewarm-step-") as folder:
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(case.ranks),
            "LOCAL_WORLD_SIZE": str(case.ranks),
            "FOLDER": folder,
            "PYTHONPATH": str(ROOT),
            "DS_ACCELERATOR": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
            # Two ranks have a core each; a single one has the machine.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // case.ranks)),
        }
        told = ["--worker", json.dumps(asdict(case)), "--kind", kind, "--steps", str(steps)]
        logs = [Path(folder, f"rank-{rank}.log") for rank in range(case.ranks)]
        ranks = []
        for rank, log in enumerate(logs):
            with log.open("w") as stream:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.step", *told],
                        env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                    )
                )
        if max(abs(rank.wait()) for rank in ranks):
            raise SystemExit(f"{kind} failed:\n" + "\n".join(log.read_text()[-4000:] for log in logs))
        found = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(case.ranks)]
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
    folder, rank = Path(os.environ["FOLDER"]), os.environ["RANK"]
    rate = matmul_flops()
    make = {"Trainer": trainer_steps, "rewarm": our_steps, "bare loop": bare_steps}[args.kind.split(",")[0]]
    seconds, cpu_s, loss = make(case, folder / rank, args.steps, args.kind.endswith("compiled"))
    found = {
        "tokens": case.ranks * case.micro_batch_size * case.accumulation * case.seq_len * args.steps,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "matmul_flops": rate,
        "loss": loss,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
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


class Clock:
    """Wall clock and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.began, self.used = time.perf_counter(), self._cpu_s()

    @staticmethod
    def _cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def read(self) -> tuple[float, float]:
        """(wall clock, CPU) seconds."""
        return time.perf_counter() - self.began, self._cpu_s() - self.used


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
    import torch

    from benchmarks.gpu import engines
    from trainer.machine import collectives, memory
    from trainer.machine.ranks import World

    memory.keep_freed_memory()
    rank, ranks = int(os.environ["RANK"]), case.ranks
    collectives.join_ranks(World(rank=rank, world_size=ranks, local_rank=rank))
    torch.manual_seed(0)
    setting = setting_of(case, compiled)
    store = engines.make_noise(folder, case.vocab, 40 * setting.tokens_per_step * ranks)
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
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from trainer.engine.ds_config import complete, read_preset
    from trainer.engine.layout import Layout

    setting = setting_of(case)
    recipe = setting.recipe(folder)
    layout = Layout(case.ranks, case.micro_batch_size, case.accumulation)
    fields = setting.shape.config(case.vocab)
    config = complete(read_preset(recipe.deepspeed), recipe, layout, fields)
    config["zero_allow_untested_optimizer"] = True
    torch.manual_seed(0)
    init = {name: value for name, value in fields.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**init))
    random = torch.Generator().manual_seed(0)

    class Noise(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = torch.randint(3, case.vocab, (case.seq_len,), generator=random)
            return {"input_ids": ids, "labels": ids}

    class Watch(TrainerCallback):
        clock: Clock
        found: tuple[float, float]

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == WARM_UP:
                self.clock = Clock()
            if state.global_step == WARM_UP + steps:
                self.found = self.clock.read()

    watch = Watch()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=WARM_UP + steps,
        per_device_train_batch_size=case.micro_batch_size,
        gradient_accumulation_steps=case.accumulation,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch",
        deepspeed=config,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        torch_compile=compiled,
    )
    trained = Trainer(model=model, args=arguments, train_dataset=Noise(), callbacks=[watch]).train()
    return *watch.found, float(trained.training_loss)


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


def commit() -> str:
    """The commit of this checkout."""
    told = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
