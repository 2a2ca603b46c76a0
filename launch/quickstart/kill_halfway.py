"""Start a run and kill all of its processes (SIGKILL) after a number of tokens and a checkpoint.

    python launch/quickstart/kill_halfway.py --run RUN --tokens T -- COMMAND…

Does nothing when the run is already past that point.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tokenization.errors import RewarmError
from trainer.checkpoint.history import list_checkpoints, step_of
from trainer.checkpoint.manifest import MARKER
from trainer.metrics.jsonl import read_metrics
from trainer.storage.run_directory import RunDirectory

STEPS_BEYOND = 5
"""Steps after the checkpoint that are trained before the kill, so that some steps are repeated."""


def main() -> int:
    """Return the exit status: 0 if the run was killed or already past, else the command's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if ripe(args.run, args.tokens):
        return 0
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        if ripe(args.run, args.tokens):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed all ranks of {args.run} at step {last_step(args.run)[0]}")
            return 0
        time.sleep(0.1)
    return process.returncode


def ripe(run: Path, tokens: int) -> bool:
    """Return whether the run is past `tokens`, and some steps past its newest committed checkpoint."""
    step, consumed = last_step(run)
    paths = list_checkpoints(RunDirectory(run).checkpoints)
    saved = [step_of(path) for path in paths if (path / MARKER).exists()]
    return consumed >= tokens and bool(saved) and step >= max(saved) + STEPS_BEYOND


def last_step(run: Path) -> tuple[int, int]:
    """Return the step and the tokens of the newest record."""
    try:
        record = read_metrics(run)[-1]
    except (RewarmError, IndexError):
        return 0, 0
    return int(record["step"]), int(record["tokens"])


if __name__ == "__main__":
    sys.exit(main())
