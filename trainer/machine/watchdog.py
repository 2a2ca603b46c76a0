"""The watchdog: reports a run that makes no progress, and ends one that was asked to stop and cannot."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from tokenization.errors import ExitCode
from trainer.machine.log_lines import file_handler
from trainer.machine.ranks import rank_or_0
from trainer.machine.signals import end_now

STOP_PATIENCE_S = 20.0
"""How long a run that was asked to stop may make no progress: less than the 30 s that launchers wait."""

LAST_WORDS_S = 5.0
"""How long a rank of a run that hangs waits for the stacks of the other ranks, which its end would end."""


class Watchdog:
    """A thread that prints all stacks when the last `beat` is too long ago.

    The first step, an evaluation and a save may take as long as the process group waits for a rank. Between
    steps a run ends itself after `hang_after_s`, so that it is started again. One that was asked to stop has
    no time for that: when it waits for a rank that does not answer, it ends unsaved instead of by SIGKILL.
    """

    def __init__(
        self,
        patience_s: float = 600.0,
        *,
        hang_after_s: float | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        end: Callable[[int], None] = end_now,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`end` ends the process when it was asked to stop and cannot, or makes no step for `hang_after_s`.

        `stream` needs a file descriptor; standard error by default.
        """
        self._patience_s, self._clock = patience_s, clock
        self._stop_requested, self._end = stop_requested, end
        self._stream = stream or sys.stderr
        self._last, self._doing, self._reported = clock(), "starting", False
        self._longest_s, self._saving, self._stepping = 0.0, False, False
        self._hang_after_s = hang_after_s
        self._asked: float | None = None
        self._hung: float | None = None
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

    def beat(self, doing: str, *, saving: bool = False, stepping: bool = False) -> None:
        """Note that the run makes progress, and what it does next, such as "step 120".

        A stop waits as long as it takes for what is `saving`; `hang_after_s` counts while it is `stepping`.
        """
        now = self._clock()
        if self._doing != "starting" and not self._saving:
            self._longest_s = max(self._longest_s, now - self._last)
        self._last, self._doing, self._reported, self._saving = now, doing, False, saving
        self._stepping = stepping

    def look(self) -> bool:
        """Print the stacks if the last beat is too long ago, once per silence; returns whether it did."""
        silence = self._clock() - self._last
        if self._reported or silence < self._patience_s:
            return False
        self._reported = True
        self._print_stacks(f"no progress for {silence:.0f} s while {self._doing}")
        return True

    def look_for_hang(self) -> bool:
        """End a run that has made no step for too long, with its stacks; returns whether it did."""
        now = self._clock()
        silence = now - self._last
        if self._hang_after_s is None or not self._stepping or silence < self._hang_after_s:
            self._hung = None
            return False
        if self._hung is None:
            self._hung = now
            what = f"no step for {silence:.0f} s (health.hang_after) while {self._doing}"
            self._print_stacks(f"{what}; ending unsaved, to be started again")
        if now - self._hung < LAST_WORDS_S:
            return False
        self._end(ExitCode.REQUEUE)
        return True

    def _print_stacks(self, what: str) -> None:
        self._print(f"{what}; stacks of all threads:")
        for stream in self._streams():
            faulthandler.dump_traceback(stream, all_threads=True)

    def _print(self, what: str) -> None:
        for stream in self._streams():
            print(f"rewarm: rank {rank_or_0()}: {what}", file=stream, flush=True)

    def _streams(self) -> list[TextIO]:
        """The terminal, and the log of this rank in the run directory."""
        return [stream for stream in (self._stream, file_handler.file) if stream is not None]

    def look_after_stop(self) -> bool:
        """End a run that was asked to stop if it takes much longer than a step; returns whether it did."""
        if not self._stop_requested():
            return False
        now = self._clock()
        self._asked = now if self._asked is None else self._asked
        silence = now - max(self._asked, self._last)
        if self._saving or silence < max(STOP_PATIENCE_S, 1.5 * self._longest_s):
            return False
        stuck = f"asked to stop, but no progress for {silence:.0f} s while {self._doing}"
        self._print(f"{stuck}: another rank does not answer; ending unsaved")
        self._end(ExitCode.REQUEUE)
        return True

    def _watch(self) -> None:
        patience_s = min(self._patience_s, self._hang_after_s or self._patience_s)
        while not self._stopped.wait(min(patience_s / 4, 1.0)):
            self.look()
            self.look_for_hang()
            self.look_after_stop()
