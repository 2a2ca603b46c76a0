"""The watchdog: prints the stacks of all threads when the run makes no progress."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from trainer.machine.ranks import rank_or_0


class Watchdog:
    """A thread that prints all stacks when the last `beat` is too long ago.

    It only reports: what ends a hang is the time-out of the process group.
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
        self._last, self._doing, self._reported = clock(), "starting", False
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
        """Note that the run makes progress, and what it does next, such as "step 120"."""
        self._last, self._doing, self._reported = self._clock(), doing, False

    def look(self) -> bool:
        """Print the stacks if the last beat is too long ago, once per silence; returns whether it did."""
        silence = self._clock() - self._last
        if self._reported or silence < self._patience_s:
            return False
        self._reported = True
        line = f"no progress for {silence:.0f} s while {self._doing}; stacks of all threads:"
        print(f"rewarm: rank {rank_or_0()}: {line}", file=self._stream, flush=True)
        faulthandler.dump_traceback(self._stream, all_threads=True)
        return True

    def _watch(self) -> None:
        while not self._stopped.wait(min(self._patience_s / 4, 10.0)):
            self.look()
