"""The log of the trainer: lines on standard error that begin with `rewarm: `, above a progress bar.

Everything is logged through `logger`, Python's logger "rewarm". Rank 0 speaks for all: what other ranks
log is shown only if it is an error or is marked with `extra=EVERY_RANK`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

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


line_handler = LineHandler()


def show_log_lines(rank: int) -> None:
    """Show this process's log on standard error, as that of `rank`; may be called again."""
    line_handler.rank = rank
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library that sets up the root logger would print each line again
    logger.addHandler(line_handler)
