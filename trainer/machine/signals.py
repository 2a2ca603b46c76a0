"""Signals become a stop that all ranks agree on, and an exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

from tokenization.errors import ExitCode


class Signals:
    """Notes SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT; the loop looks after each step.

    The step under way is finished and saved; a second SIGINT does not wait for that. Once a run has been
    stopped, these signals are ignored: a launcher that sees one rank exit sends SIGTERM to the others,
    which are about to exit themselves, and that must not turn a clean stop into a kill.
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
    def exit_code(self) -> ExitCode:
        """The exit status once the run is saved; 0 if no signal came."""
        if self.received is None:
            return ExitCode.DONE
        return ExitCode.INTERRUPTED if self.received is signal.SIGINT else ExitCode.REQUEUE

    def agree(self, received: Iterable[signal.Signals | None]) -> None:
        """Take over the first signal that any rank received, so that all exit with the same status."""
        self.received = next((number for number in received if number is not None), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)


def exit_on_signal() -> None:
    """Exit on SIGTERM and SIGUSR1 with the status of a requeue, until `Signals` takes over.

    A job may be preempted while it still loads: then there is nothing to save, and nothing to wait for.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: os._exit(ExitCode.REQUEUE))
