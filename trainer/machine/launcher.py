"""The processes that started this rank: a rank whose launcher was killed must not train on unseen.

SIGTERM ends the `deepspeed` command without a word to the processes that it has started, and SIGKILL any
launcher. Nobody would then end the ranks, or start what comes after them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from pathlib import Path

import psutil

from trainer.machine.log_lines import EVERY_RANK, logger

COMMANDS = re.compile(
    r"deepspeed|ds|torchrun|accelerate(-launch)?|(mpirun|mpiexec|orterun|prterun)(\.\w+)?|orted|prted"
    r"|hydra_pmi_proxy|hydra_bstrap_proxy|slurmstepd"
)
"""File names of launchers' programs."""

MODULES = re.compile(r"deepspeed\.launcher\.\w+|torch\.distributed\.(run|launch)|accelerate\.commands\.\w+")
"""What launchers are called with after `python -m`."""


def is_launcher(command_line: list[str]) -> bool:
    """Tell whether a process with these arguments is a launcher of ranks."""
    for place, word in enumerate(command_line[:6]):
        if place and command_line[place - 1] == "-m":
            return MODULES.fullmatch(word) is not None
        if COMMANDS.fullmatch(Path(word.rstrip(":")).name):
            return True
        if place and not word.startswith("-"):
            return False
    return False


def launchers() -> list[psutil.Process]:
    """Return the launchers that this process descends from, without a gap; none when a person started it."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            if not is_launcher(process.cmdline()):
                break
            found.append(process)
    return found


def signal_ranks(launcher: int, number: int) -> None:
    """Send a signal to the ranks that process `launcher` has started: `deepspeed` passes none on to them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(launcher).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                parent = process.parent()
                if parent and is_launcher(parent.cmdline()) and not is_launcher(process.cmdline()):
                    process.send_signal(number)


def stop_with_launcher(every_s: float = 1.0) -> None:
    """Send this process SIGTERM once one of its launchers has gone."""
    if watched := launchers():
        threading.Thread(target=_watch, args=(watched, every_s), name="launcher", daemon=True).start()


def _watch(watched: list[psutil.Process], every_s: float) -> None:
    waiting = threading.Event()
    while not waiting.wait(every_s):
        for process in watched:
            if _gone(process):
                line = f"the launcher (process {process.pid}) has gone: stopping as after SIGTERM"
                logger.warning(line, extra=EVERY_RANK)
                os.kill(os.getpid(), signal.SIGTERM)
                return


def _gone(process: psutil.Process) -> bool:
    """Whether a process has ended, its parent's knowledge of that aside."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
