"""`status.json`: what a run is doing, written by rank 0 every few seconds and at every change of state."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenization import disk
from tokenization.errors import RewarmError
from trainer.machine.signals import before_end
from trainer.metrics import names
from trainer.metrics.jsonl import Record
from trainer.storage.run_directory import RunDirectory

EVERY_S = 10.0
"""How often the file is written while nothing changes: who reads it knows then that the run lives."""


class Heartbeat:
    """Writes the status of a run from a thread of its own, so that no step waits for it.

    The states are `queued` (written by `rewarm submit`), `running`, `saving` (the training waits for a
    checkpoint), `stopped` (by a signal, or by `stop_after`), `finished`, and `failed`, with the message. A
    disk that refuses the file is ignored: no status is worth a step. On other ranks than 0 it does nothing.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rank: int = 0,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._every_s, self._clock = RunDirectory(directory).status, every_s, clock
        self._silent = rank != 0
        self._fields = {**_last_numbers(read_status(directory)), **_process(), "step_time": None}
        self._position: Callable[[], tuple[int, int]] | None = None
        self._first: tuple[float, int] | None = None
        self._wake, self._done, self._lock = threading.Event(), False, threading.RLock()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if not self._silent:
            self._change("running")
            before_end.append(self._end_at_once)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._silent:
            return
        before_end.remove(self._end_at_once)
        if isinstance(error, KeyboardInterrupt):
            self.end("stopped", "interrupted before its save")
        elif error is not None:
            self.end("failed", _in_a_line(error))
        self._close()

    @contextlib.contextmanager
    def following(self, position: Callable[[], tuple[int, int]], total_tokens: int) -> Iterator[None]:
        """Take the run's position from `position`, which returns (steps, tokens), whenever it is written."""
        step, tokens = position()
        self._first = (self._clock(), tokens)
        self._fields |= {"step": step, "tokens": tokens, "total_tokens": total_tokens}
        self._fields["step_time"] = self._clock()
        self._position = position
        self._wake.set()
        try:
            yield
        finally:
            self._position = None
            self._fields["step"], self._fields["tokens"] = position()

    def log(self, record: Record) -> None:
        """Keep the newest metrics; see `Sink`."""
        newest = {name: record[name] for name in names.SHOWN if name in record}
        self._fields["metrics"] = {**self._fields["metrics"], **newest}  # the thread may read the old one

    def flush(self) -> None:
        """Nothing waits to be written; see `Sink`."""

    def close(self) -> None:
        """Metrics have come to their end, and the run has not; see `Sink`."""

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Show what happens inside as a save that the training waits for."""
        self._change("saving")
        yield
        self._change("running")

    def end(self, state: str, message: str | None = None) -> None:
        """Note how the run ended, and why; it is written when the block of this heartbeat ends."""
        self._change(state, message)

    def _change(self, state: str, message: str | None = None) -> None:
        """Set the state, which the thread writes at once."""
        self._fields |= {"state": state, "message": message, "since": self._clock()}
        self._wake.set()

    def _beat(self) -> None:
        while not self._done:
            self._wake.clear()
            self._write()
            self._wake.wait(self._every_s)

    def _close(self) -> None:
        """Write the last status; the thread writes no other one after it."""
        with self._lock:
            self._write()
            self._done = True
        self._wake.set()

    def _end_at_once(self, exit_code: int) -> None:
        """Write, from any thread, that the process ends without its save."""
        self._change("stopped", f"ended with exit status {exit_code} while it could not, or need not, save")
        if self._lock.acquire(timeout=2.0):
            self._write()
            self._done = True
            self._lock.release()

    def _write(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if not self._done:
                now = self._clock()
                if (position := self._position) is not None:
                    step, self._fields["tokens"] = position()
                    if step != self._fields["step"]:
                        self._fields |= {"step": step, "step_time": now}
                write_status(self._path.parent, {**self._fields, "time": now, "eta_s": self._eta_s(now)})

    def _eta_s(self, now: float) -> float | None:
        """Seconds to the end at the rate since this start, evaluations and saves included."""
        if self._first is None:
            return None
        began, before = self._first
        done, left = self._fields["tokens"] - before, self._fields["total_tokens"] - self._fields["tokens"]
        return (now - began) * left / done if done > 0 else None


def write_status(directory: Path, fields: Mapping[str, Any]) -> None:
    """Write a status, whole or not at all.

    Raises:
        OSError: the disk is full or fails.
    """
    metrics = {
        name: value if math.isfinite(value) else str(value) for name, value in fields["metrics"].items()
    }
    text = json.dumps({**fields, "metrics": metrics}, indent=1, ensure_ascii=False)
    disk.write_atomically(RunDirectory(directory).status, text + "\n")


def read_status(directory: Path) -> dict[str, Any]:
    """Read the status of a run; empty where there is none that can be read."""
    try:
        found = json.loads(RunDirectory(directory).status.read_text(encoding="utf-8"))
        found["metrics"] = {name: float(value) for name, value in found["metrics"].items()}
        return {**found, "state": str(found["state"]), "time": float(found["time"])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def queued_status(directory: Path) -> dict[str, Any]:
    """Return the status of a run that waits in the queue; what it had reached before stays."""
    now = time.time()
    state = {"state": "queued", "since": now, "time": now, "message": None, "step_time": None, "eta_s": None}
    return _last_numbers(read_status(directory)) | {"host": None, "pid": None, "job": None} | state


def _last_numbers(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far a run had come by its last status."""
    return {
        "step": status.get("step", 0),
        "tokens": status.get("tokens", 0),
        "total_tokens": status.get("total_tokens"),
        "metrics": dict(status.get("metrics", {})),
    }


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, RewarmError) else f"{type(error).__name__}: {text}"
