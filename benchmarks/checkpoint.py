"""Saving and loading beside DeepSpeed's own checkpoints: one run, the same model, the same disk.

    python benchmarks/checkpoint.py                       # 2 ranks, ZeRO-2, 62 M parameters
    python benchmarks/checkpoint.py --layers 2 --repeats 1 # some seconds

Ours is synced to the disk when it counts; `engine.save_checkpoint` leaves that to the kernel, so its time
is told as it is and with a sync behind it. Every repeat writes to a new directory, one side after the
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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    asked = parser.parse_args()
    if "RANK" in os.environ:
        measure(asked)
        return 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="checkpoint-benchmark-") as folder:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(asked.ranks)}
        shared |= {"FOLDER": folder, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(asked.ranks)
        ]
        return max(abs(rank.wait()) for rank in ranks)


def measure(asked: argparse.Namespace) -> None:
    """What every rank does."""
    import torch

    from trainer import distributed
    from trainer.launcher import world

    here = world()
    distributed.start(here)
    engine = open_engine(asked)
    folder = Path(os.environ["FOLDER"])
    times: dict[str, list[float]] = {}

    def clock(name: str, action: Callable[[], Any]) -> Any:
        distributed.from_all(None)
        began = time.perf_counter()
        answer = action()
        times.setdefault(name, []).append(max(distributed.from_all(time.perf_counter() - began)))
        return answer

    one_repeat(engine, folder / "warm-up", lambda name, action: action(), here)
    for repeat in range(asked.repeats):
        one_repeat(engine, folder / str(repeat), clock, here)
    if here.rank == 0:
        parameters = sum(parameter.numel() for parameter in engine.engine.module.parameters())
        print(table(times, parameters, asked, torch.cuda.is_available()))
    distributed.stop()


def open_engine(asked: argparse.Namespace) -> Any:
    """A LLaMA of random weights that has made one step, so that all of its states exist."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.engine import Engine, sharded_loading
    from trainer.recipe import Optimizer

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": asked.stage},
    }
    torch.manual_seed(0)
    llama = AutoConfig.for_model(
        "llama",
        hidden_size=asked.hidden,
        intermediate_size=asked.hidden * 8 // 3,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.hidden // 64,
        vocab_size=8000,
    )
    with sharded_loading(config):
        model = AutoModelForCausalLM.from_config(llama, dtype=torch.float32)
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    engine = Engine(model, groups, config, Optimizer())
    ids = torch.arange(64, device=engine.device).view(1, 64)
    engine.engine.backward(engine.engine(input_ids=ids, labels=ids).loss)
    engine.engine.step()
    return engine


def one_repeat(engine: Any, folder: Path, clock: Callable[[str, Callable[[], Any]], Any], here: Any) -> None:
    """Every measurement once."""
    from trainer import distributed
    from trainer.checkpoint import commit

    theirs = folder / "deepspeed"
    clock("save_checkpoint", lambda: engine.engine.save_checkpoint(str(theirs), tag="x"))
    clock("the sync behind it", lambda: sync(theirs, here.rank))
    for kind, asynchronous in (("synchronous", False), ("asynchronous", True)):
        saver = open_saver(folder / kind / "checkpoints", here, asynchronous)
        clock(f"{kind}: first blocked", lambda saver=saver: save(engine, saver, 1))
        clock(f"{kind}: first in all", saver.wait)
        clock(f"{kind}: blocked", lambda saver=saver: save(engine, saver, 2))
        clock(f"{kind}: rest", saver.wait)
    ours = commit.scan(folder / "synchronous" / "checkpoints")[0][-1]
    for temperature in ("cold", "warm"):
        if temperature == "cold":
            forget(theirs)
        clock(f"{temperature} load_checkpoint", lambda: engine.engine.load_checkpoint(str(theirs), tag="x"))
        if temperature == "cold":
            forget(ours.path)
        clock(f"{temperature} resume", lambda: load(engine, ours, here))
    distributed.from_all(None)
    if here.rank == 0:
        files(ours, folder, clock_alone(clock))
    distributed.from_all(None)
    if here.rank == 0:
        shutil.rmtree(folder)
    distributed.from_all(None)


def clock_alone(clock: Any) -> Callable[[str, Callable[[], Any]], None]:
    """A clock for rank 0 alone, which writes where the common clock does."""
    times = next((cell.cell_contents for cell in clock.__closure__ or () if type(cell.cell_contents) is dict), {})

    def alone(name: str, action: Callable[[], Any]) -> None:
        began = time.perf_counter()
        action()
        times.setdefault(name, []).append(time.perf_counter() - began)

    return alone
