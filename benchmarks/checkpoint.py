"""Saving and loading compared with DeepSpeed's own checkpoints: one run, the same model, the same disk.

    python benchmarks/checkpoint.py                       # 2 ranks, ZeRO-2, 62 M parameters
    python benchmarks/checkpoint.py --layers 2 --repeats 1 # some seconds

Ours is synced to the disk when it counts; `engine.save_checkpoint` leaves that to the kernel, so its time
is reported without and with a sync after it. Every repeat writes to a new directory, one side after the
other; before a load the files are dropped from the page cache. Prints Markdown; medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    args = parser.parse_args()
    if "RANK" in os.environ:
        measure(args)
        return 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="checkpoint-benchmark-") as folder:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(args.ranks)}
        shared |= {"FOLDER": folder, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(args.ranks)
        ]
        return max(abs(rank.wait()) for rank in ranks)


class Clock:
    """Times by name: the slowest rank's, from a common start."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def __call__(self, name: str, action: Callable[[], Any]) -> Any:
        """Return what `action`, done by all ranks, answers."""
        from trainer.machine import collectives

        collectives.all_gather(None)
        began = time.perf_counter()
        answer = action()
        self.times.setdefault(name, []).append(max(collectives.all_gather(time.perf_counter() - began)))
        return answer

    def median(self, *names: str) -> float:
        """Of the sum over `names`."""
        return statistics.median(map(sum, zip(*(self.times[name] for name in names), strict=True)))


def measure(args: argparse.Namespace) -> None:
    """Run what every rank does."""
    from trainer.machine import collectives
    from trainer.machine.ranks import current_world

    here = current_world()
    collectives.join_ranks(here)
    engine = open_engine(args)
    folder = Path(os.environ["FOLDER"])
    one_repeat(engine, folder / "warm-up", Clock(), here.rank, 0)
    clock = Clock()
    for repeat in range(args.repeats):
        one_repeat(engine, folder / str(repeat), clock, here.rank, repeat)
    if here.rank == 0:
        print(table(clock, engine, args))
    collectives.leave_ranks()


def open_engine(args: argparse.Namespace) -> Any:
    """Return a LLaMA of random weights that has made one step, so that all of its states exist."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.engine.engine import Engine, sharded_loading
    from trainer.recipe.schema import Optimizer

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": args.stage},
    }
    torch.manual_seed(0)
    llama = AutoConfig.for_model(
        "llama",
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        vocab_size=8000,
    )
    with sharded_loading(config):
        model = AutoModelForCausalLM.from_config(llama, dtype=torch.float32)
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    engine = Engine(model, groups, config, Optimizer())
    compute(engine)
    engine.engine.step()
    return engine


def compute(engine: Any) -> None:
    """Run a short forward and backward; what a training step does before it changes weights is longer."""
    import torch

    ids = torch.arange(256, device=engine.device).view(1, 256)
    engine.engine.backward(engine.engine(input_ids=ids, labels=ids).loss)


def one_repeat(engine: Any, folder: Path, clock: Clock, rank: int, repeat: int) -> None:
    """Make every measurement once, in a directory that is removed again."""
    from trainer.checkpoint import history
    from trainer.machine import collectives

    theirs = folder / "deepspeed"
    clock("save_checkpoint", lambda: engine.engine.save_checkpoint(str(theirs), tag="x"))
    clock("sync", lambda: sync(theirs, rank))
    for kind in ("synchronous", "asynchronous"):
        saver = open_saver(folder / kind / "checkpoints", kind == "asynchronous", rank)
        for step, name in ((1, "first "), (2, "")):
            clock(f"{name}{kind} save", partial(save, engine, saver, step))
            clock(f"{name}{kind} compute", lambda: compute(engine))
            clock(f"{name}{kind} wait", saver.wait_for_snapshot)
            clock(f"{name}{kind} rest", partial(finish, saver))
    clock("compute", lambda: compute(engine))
    (*_, ours), _ = history.scan_checkpoints(folder / "synchronous" / "checkpoints")
    loads = [
        ("load_checkpoint", lambda: engine.engine.load_checkpoint(str(theirs), tag="x")),
        ("resume", lambda: resume(engine, ours)),
    ]
    for kind in ("cold", "warm"):
        for name, load in loads[:: 1 if repeat % 2 else -1]:  # a disk may be slower for who comes second
            if kind == "cold":
                forget(folder)
            else:
                load()
            clock(f"{kind} {name}", load)
    forget(folder)
    clock("read", on_rank_0(rank, read_whole, ours))
    forget(folder)
    clock("export", on_rank_0(rank, write_weights, ours, folder / "export"))
    for name, source in (("cp of the checkpoint", ours.path), ("cp of the export", folder / "export")):
        forget(folder)
        clock(name, on_rank_0(rank, copy, source, folder / name.replace(" ", "-")))
    collectives.all_gather(None)
    if rank == 0:
        shutil.rmtree(folder)
    collectives.all_gather(None)


def open_saver(folder: Path, asynchronous: bool, rank: int) -> Any:
    from trainer.checkpoint.save import Saver
    from trainer.machine import collectives

    return Saver(
        folder,
        rank=rank,
        world_size=collectives.world_size(),
        gather=collectives.background_gather(),
        keep_last=2,
        keep_every=None,
        asynchronous=asynchronous,
    )


def save(engine: Any, saver: Any, step: int) -> None:
    """Save as a session does, until training may continue."""
    from trainer.checkpoint.manifest import Position
    from trainer.machine import collectives

    shares = [[own for own in share if own.owned] for share in engine.shares()]
    if saver.rank == 0:
        saver.open_directory(step, needed=1)
    collectives.broadcast(None)
    position = Position(
        step=step,
        tokens=step,
        adam_step=engine.adam_step,
        state={},
        world_size=engine.world_size,
        stage=engine.stage,
        loss_scale={},
        baseline={},
        recipe="",
        versions={},
    )
    saver.save(position, shares)


def finish(saver: Any) -> None:
    failure = saver.wait()
    if failure:
        raise RuntimeError(failure)


def resume(engine: Any, checkpoint: Any) -> None:
    """From finding the checkpoint to an engine that may go on, as a run does: verified before and after."""
    from trainer.checkpoint import history
    from trainer.checkpoint.load import find_damage, load_checkpoint

    history.scan_checkpoints(checkpoint.path.parent)
    if find_damage(checkpoint):
        raise RuntimeError("damaged")
    load_checkpoint(engine, checkpoint, keep_optimizer=True)


def read_whole(checkpoint: Any) -> None:
    """Verify and assemble every parameter and moment, one at a time, as another topology would."""
    import torch

    from trainer.checkpoint import rank_files
    from trainer.checkpoint.manifest import verify_checkpoint

    if verify_checkpoint(checkpoint):
        raise RuntimeError("damaged")
    reader = rank_files.Reader(checkpoint.files)
    for name, pieces in reader.pieces.items():
        for kind in pieces[0].tensors:
            torch.clone(reader.whole(name, kind))


def write_weights(checkpoint: Any, out: Path) -> None:
    """Write the fp32 weights as Hugging Face has them, as `rewarm export` writes them, synced."""
    from trainer.checkpoint import rank_files
    from trainer.storage.safetensors import WeightsWriter

    out.mkdir()
    reader = rank_files.Reader(checkpoint.files)
    writer = WeightsWriter(out)
    for weight in reader.weights():
        writer.add(weight)
    writer.close()


def on_rank_0(rank: int, action: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """`action` with its arguments on rank 0, and nothing on the others."""
    return partial(action, *arguments) if rank == 0 else lambda: None


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)
    sync(target, 0)


def sync(folder: Path, rank: int) -> None:
    """Sync every file, as a save must do to outlive a power cut."""
    for path in folder.rglob("*") if rank == 0 else ():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def forget(folder: Path) -> None:
    """Drop the files from the page cache, as after a restart on another machine."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(clock: Clock, engine: Any, args: argparse.Namespace) -> str:
    """Markdown: what, seconds, against what, ratio, target."""
    import torch

    median = clock.median
    theirs, synced = median("save_checkpoint"), median("save_checkpoint", "sync")
    ours = median("synchronous save", "synchronous rest")
    blocked = median("asynchronous save", "asynchronous wait")
    first = median("first asynchronous save", "first asynchronous wait")
    saves = "engine.save_checkpoint"
    during, alone = median("asynchronous compute"), median("compute")
    rows = [
        (saves, theirs, "", None, ""),
        ("the same and a sync", synced, "", None, ""),
        ("synchronous save (synced)", ours, saves, theirs, "<= 1.1"),
        ("synchronous save (synced)", ours, "the same and a sync", synced, "<= 1.1"),
        ("asynchronous save, blocked", blocked, saves, theirs, "<= 0.1"),
        ("the first one, blocked", first, saves, theirs, ""),
        ("a forward and backward alone", alone, "", None, ""),
        ("a forward and backward during a save", during, "alone", alone, ""),
    ]
    for kind in ("cold", "warm"):
        load = median(f"{kind} load_checkpoint")
        rows.append((f"engine.load_checkpoint, {kind}", load, "", None, ""))
        rows.append((f"resume, {kind}", median(f"{kind} resume"), "engine.load_checkpoint", load, "<= 1.5"))
    for name, against in (("read", "cp of the checkpoint"), ("export", "cp of the export")):
        rows.append((against, median(against), "", None, ""))
        rows.append((name, median(name), against, median(against), "<= 1.67"))
    lines = ["| what | median s | against | ratio | target |", "| --- | --: | --- | --: | --- |"]
    for what, seconds, against, other, target in rows:
        ratio = "" if other is None else f"{seconds / other:.2f}"
        lines.append(f"| {what} | {seconds:.3f} | {against} | {ratio} | {target} |")
    parameters = sum(parameter.numel() for parameter in engine.engine.module.parameters())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    head = (
        f"{parameters:,} parameters in bf16, {args.ranks} ranks, ZeRO-{args.stage}, "
        f"{args.repeats} repeats; {device}, {os.cpu_count()} cores; "
        f"deepspeed {version('deepspeed')}, torch {version('torch')}; "
        f"{date.today()}"
    )
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
