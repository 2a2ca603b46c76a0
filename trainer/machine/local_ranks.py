"""Start the ranks of a program on this machine, under the `deepspeed` command of this Python environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from tokenization.errors import ExitCode
from trainer.machine.launcher import signal_ranks
from trainer.machine.ranks import free_port
from trainer.machine.signals import STOPS

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def run_ranks(
    program: Sequence[str],
    count: int,
    too_late: Callable[[], bool] = lambda: False,
    every_s: float = 1.0,
) -> int:
    """Run a program on `count` ranks and return the exit status of their launcher.

    Args:
        program: a script, or `--module` and the name of a module, and its arguments.
        count: number of ranks; each takes a GPU where there are GPUs.
        too_late: asked every `every_s` seconds; once it is true, all ranks are killed.
        every_s: seconds.
    """
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", str(count)]
    process = subprocess.Popen(
        [*launcher, "--master_port", str(free_port()), *program],
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=sys.stderr,  # standard output is for the command's answer
    )
    before = {number: signal.signal(number, partial(_forward, process.pid)) for number in _FORWARDED}
    try:
        while True:
            try:
                status = process.wait(every_s)
                return status if status >= 0 else STOPS.get(signal.Signals(-status), ExitCode.FAILED)
            except subprocess.TimeoutExpired:
                if too_late():
                    signal_ranks(process.pid, signal.SIGKILL)
            except KeyboardInterrupt:
                continue  # the terminal has sent it to the ranks as well, which save before they end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forward(launcher: int, number: int, frame: FrameType | None) -> None:
    """Let the ranks hear it; their launcher ends when they have."""
    signal_ranks(launcher, number)
