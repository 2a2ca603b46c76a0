"""Turn signals into a stop that all ranks agree on, and into exit codes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

# ------------------------------------------------------------------------------------------------ signals

EXIT_STOPPED = 75
"""Status of a run that a signal ended after its save: the same command goes on from there (EX_TEMPFAIL)."""


EXIT_INTERRUPTED = 130
"""Status of a run that Ctrl-C ended after its save: a person wanted it, so nothing should start it again."""


class Signals:
    """Turns SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT into a question that the loop asks each step.

    The step under way is finished and saved. A second SIGINT does not wait for that. Once that is done,
    a launcher that sees one rank gone ends the others, which are about to end: that must not make a kill of
    a clean stop, so from then on these signals are ignored.
    """

    WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal that came."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        for number in self.WATCHED:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = self.stop_requested and error is None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if stopped else handler)

    @property
    def stop_requested(self) -> bool:
        """Whether the run has been asked to stop."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What to exit with once the run is saved; 0 when nothing was asked."""
        if self.received is None:
            return 0
        return EXIT_INTERRUPTED if self.received is signal.SIGINT else EXIT_STOPPED

    def agree(self, received: Iterable[signal.Signals | None]) -> None:
        """All ranks stop for the signal that one of them got, and with its status."""
        self.received = next((number for number in received if number is not None), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)


def exit_on_signal() -> None:
    """Until `Signals` takes over, SIGTERM and SIGUSR1 end this process with the status of a requeue.

    A job may be preempted while it still loads: then there is nothing to save, and nothing to wait for.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: os._exit(EXIT_STOPPED))
