"""Print every thread's stack when the run has not moved for too long."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

# ------------------------------------------------------------------------------------------------ hangs


class Watchdog:
    """A thread that prints all stacks when the run has not been heard of for too long.

    It only tells: what ends a hang is the process group's own time-out.
    """

    def __init__(
        self,
        patience_s: float = 600.0,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stream` needs a file descriptor; standard error by default."""
        self._patience_s, self._clock = patience_s, clock
        self._stream = stream or sys.stderr
        self._last, self._doing, self._told = clock(), "starting", False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def beat(self, doing: str) -> None:
        """Says that the run is alive, and what it does next, such as "step 120" or "saving"."""
        self._last, self._doing, self._told = self._clock(), doing, False

    def look(self) -> bool:
        """Prints the stacks if the last beat is too long ago, once per silence; whether it did."""
        silence = self._clock() - self._last
        if self._told or silence < self._patience_s:
            return False
        self._told = True
        rank = os.environ.get("RANK", "0")
        line = f"rank {rank}: no progress for {silence:.0f} s while {self._doing}; stacks of all threads:"
        print(line, file=self._stream, flush=True)
        faulthandler.dump_traceback(self._stream, all_threads=True)
        return True

    def _watch(self) -> None:
        while not self._stopped.wait(min(self._patience_s / 4, 10.0)):
            self.look()
