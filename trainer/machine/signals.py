"""Signals become a stop that all ranks agree on, and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

from tokenization.errors import ExitCode
from trainer.machine.ranks import note_status

STOPS = {
    signal.SIGTERM: ExitCode.REQUEUE,  # kill, timeout, Kubernetes, Slurm's preemption, every launcher
    signal.SIGUSR1: ExitCode.REQUEUE,  # Slurm's warning (--signal=USR1@300), SGE
    signal.SIGUSR2: ExitCode.REQUEUE,  # the warning of other sites, SGE, LSF
    signal.SIGHUP: ExitCode.REQUEUE,  # a closed terminal, a lost connection
    signal.SIGXCPU: ExitCode.REQUEUE,  # the limit of CPU time (ulimit -t, SGE)
    signal.SIGINT: ExitCode.INTERRUPTED,  # Ctrl-C
    signal.SIGQUIT: ExitCode.INTERRUPTED,  # Ctrl-\
}
"""The signals that end a run, and the exit code after the save."""

KEYS = (signal.SIGINT, signal.SIGQUIT)
"""What a person types at a terminal; a second one does not wait for the save."""

SECOND_KEY_PATIENCE_S = 5.0
"""How long the main thread may take to end after a second Ctrl-C, before the process ends without it."""

before_end: list[Callable[[int], None]] = []
"""Called with the exit code, from any thread, before `end_now` ends the process; they must be quick."""

must_end_abruptly = threading.Event()
"""Set while this process is in a process group, whose threads may abort an orderly end (134)."""


class Signals:
    """Notes the first of the signals `STOPS`; the loop looks after each step.

    The step under way is finished and saved; a second Ctrl-C does not wait for that. While nothing is
    unsaved, a signal ends the process at once, even if the main thread waits for other ranks, where Python
    runs no handler: Python's wake-up pipe tells a thread. Once a run has been stopped, these signals are
    ignored: a launcher that sees one rank exit sends SIGTERM to the others, which are about to exit
    themselves, and that must not turn a clean stop into a kill. SIGHUP stays ignored under `nohup`.
    """

    WATCHED = tuple(STOPS)

    def __init__(self, unsaved: bool = True, failed_with: int | None = None) -> None:
        """`failed_with` is the exit code of an error that is being shown; a signal ends with it too."""
        self.unsaved = unsaved
        """Whether a stop must wait for a save; if not, a signal ends the process at once."""
        self.failed_with = failed_with
        self.received: signal.Signals | None = None
        """The first signal that came."""
        self._before: dict[signal.Signals, Any] = {}
        self._closed = False

    def __enter__(self) -> Signals:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        threading.Thread(target=self._listen, args=(reading,), name="signals", daemon=True).start()
        for number in self.WATCHED:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        stopped = self.stop_requested and error is None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if stopped else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writing)  # ends the thread

    @property
    def stop_requested(self) -> bool:
        """Whether the run has been asked to stop."""
        return self.received is not None

    @property
    def exit_code(self) -> ExitCode:
        """The exit status once the run is saved; 0 if no signal came."""
        return ExitCode.DONE if self.received is None else STOPS[self.received]

    def all_saved(self) -> None:
        """From now on a signal ends the process at once; one that has come already does so here."""
        self.unsaved = False
        if self.received is not None:
            end_now(STOPS[self.received])

    def agree(self, received: Iterable[signal.Signals | None]) -> None:
        """Take over the first signal that any rank received, so that all exit with the same status."""
        self.received = next((number for number in received if number is not None), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread."""
        self._end_if_saved(number)
        if number in KEYS and self.received in KEYS:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)

    def _listen(self, reading: int) -> None:
        """Handle, in a thread of its own, the signals that the main thread may be too busy to handle."""
        keys = 0
        while caught := os.read(reading, 1):
            self._end_if_saved(caught[0])
            keys += caught[0] in KEYS
            if keys > 1:
                time.sleep(SECOND_KEY_PATIENCE_S)
                if not self._closed:
                    end_now(ExitCode.INTERRUPTED)
        os.close(reading)

    def _end_if_saved(self, number: int) -> None:
        if self.received is None and not self.unsaved and not self._closed:
            end_now(STOPS[signal.Signals(number)] if self.failed_with is None else self.failed_with)


_starting: Signals | None = None
"""What `exit_on_signal` has installed in this process."""


def exit_on_signal() -> None:
    """Exit on a signal with its exit code, until `Signals` takes over.

    A job may be preempted while it still loads or waits for other ranks: then there is nothing to save,
    and nothing to wait for.
    """
    global _starting
    if _starting is None:
        _starting = Signals(unsaved=False).__enter__()


def end_now(exit_code: int) -> None:
    """End the process from any thread, whatever the others do; the batch script learns the exit code."""
    note_status(exit_code)
    for last_word in list(before_end):
        with contextlib.suppress(Exception):
            last_word(exit_code)
    os._exit(exit_code)


def end_failed_rank(exit_code: int) -> None:
    """End the process after a failure if it is in a process group; other libraries do not clean up."""
    if must_end_abruptly.is_set():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)


def wait_for_rank0(rank: int, exit_code: int, patience_s: float = 10.0) -> None:
    """Wait on other ranks until rank 0 has printed the error; its launcher ends this rank then.

    Without the delay the launcher kills rank 0 before it has printed the error. A rank that is not ended
    within `patience_s` seconds has an error of its own. A signal from the launcher exits with `exit_code`:
    this is a failure, not a stop to go on from.
    """
    if rank == 0:
        return
    with Signals(unsaved=False, failed_with=exit_code):
        time.sleep(patience_s)
