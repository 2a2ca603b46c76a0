"""Processes for one measurement, one per rank, and what a result is recorded with."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu.driver import commit

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(module: str, told: Iterable[str], ranks: int, threads: int | None = None) -> list[Any]:
    """Run `python -m MODULE TOLD...` once per rank and return what each left by `leave`, in rank order.

    `threads` are those of one rank; by default the ranks share the cores.

    Raises:
        SystemExit: a rank failed; the end of each rank's log is the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="rewarm-ranks-") as folder:
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "FOLDER": folder,
            "PYTHONPATH": str(ROOT),
            "DS_ACCELERATOR": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(threads or max(1, (os.cpu_count() or 1) // ranks)),
        }
        logs = [Path(folder, f"rank-{rank}.log") for rank in range(ranks)]
        started = []
        for rank, log in enumerate(logs):
            with log.open("w") as stream:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, *told],
                        env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                    )
                )
        if max(abs(rank.wait()) for rank in started):
            raise SystemExit("\n".join([f"{module} failed:", *(log.read_text()[-4000:] for log in logs)]))
        return [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def rank_folder() -> Path:
    """A folder of this rank's own that lasts as long as the measurement."""
    return Path(os.environ["FOLDER"], os.environ["RANK"])


def leave(found: Any) -> None:
    """Leave this rank's findings for `run_ranks`."""
    rank_folder().with_name(f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))


def join(ranks: int) -> None:
    """Join the process group of `run_ranks`, and draw the same numbers on every rank."""
    import torch

    from trainer.machine import collectives
    from trainer.machine.ranks import World

    rank = int(os.environ["RANK"])
    collectives.join_ranks(World(rank=rank, world_size=ranks, local_rank=rank))
    torch.manual_seed(0)


def surroundings(packages: Sequence[str] = ("torch", "deepspeed", "transformers")) -> dict[str, Any]:
    """Return the commit, the machine and the versions that a result is of."""
    return {
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in packages},
    }
