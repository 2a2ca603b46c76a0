"""The log of the trainer: lines on standard error that begin with `rewarm: `, above a progress bar.

Everything is logged through `logger`, Python's logger "rewarm". Rank 0 speaks for all: what other ranks
log is shown only if it is an error or is marked with `extra=EVERY_RANK`. Once a run has its run directory,
a file there keeps what each rank logs, shown or not (`keep_log`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.machine.streams import EnduringStream

logger = logging.getLogger("rewarm")

EVERY_RANK = {"every_rank": True}
"""`extra` of a record that is about this rank alone, or about its machine."""


def print_to_stderr(line: str) -> None:
    """Print a line on what is standard error now."""
    print(line, file=sys.stderr, flush=True)


class LineHandler(logging.Handler):
    """Writes the records of one rank line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = 0
        self.write: Callable[[str], None] = print_to_stderr
        """Replaced while a progress bar is shown, which must not be torn."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this rank shows the record."""
        return self.rank == 0 or record.levelno >= logging.ERROR or hasattr(record, "every_rank")

    def emit(self, record: logging.LogRecord) -> None:
        """Write each line of the message."""
        who = f"rank {self.rank}: " if self.rank else ""
        try:
            for line in record.getMessage().splitlines():
                self.write(f"rewarm: {who}{line}")
        except Exception:
            self.handleError(record)


class FileHandler(logging.Handler):
    """Appends the records of one rank to a file; a disk that refuses them is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.file: Any = None
        """Where the lines go; None until the run directory is known."""
        self.formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message, with its time and its level."""
        self.write(self.format(record))

    def write(self, text: str) -> None:
        """Write text that is not a record, such as a traceback."""
        if self.file is not None:
            self.file.write(f"{text}\n")
            self.file.flush()


line_handler = LineHandler()
file_handler = FileHandler()


def show_log_lines(rank: int) -> None:
    """Show this process's log on standard error, as that of `rank`; may be called again."""
    line_handler.rank = rank
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library that sets up the root logger would print each line again
    logger.addHandler(line_handler)
    logger.addHandler(file_handler)


def keep_log(path: Path | None) -> None:
    """Append what this rank logs from now on to `path`, or to no file; a disk that refuses it is ignored.

    A process that trains another run after this one calls this again.
    """
    if file_handler.file is not None:
        with contextlib.suppress(OSError):
            file_handler.file.close()
        file_handler.file = None
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        logger.warning(f"{path}: the log cannot be kept ({error.strerror})", extra=EVERY_RANK)
        return
    file_handler.file = EnduringStream(file)
    job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    file_handler.write(f"--- {now} process {os.getpid()} on {socket.gethostname()}{job}")
