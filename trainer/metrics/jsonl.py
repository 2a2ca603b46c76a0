"""`metrics.jsonl`, the record of a run: written line by line, read back as attempts or as one history."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenization.errors import UserError
from trainer.metrics.names import current_name
from trainer.storage.run_directory import RunDirectory

Record = dict[str, Any]
"""`attempt`, `step`, `tokens`, `time` (seconds since 1970) and metrics by name."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run, until it ended or was killed."""

    number: int
    """1 for the first start."""
    restored_step: int | None
    """The step of the checkpoint that was restored; None for a fresh start."""
    time: float
    run_id: str
    records: list[Record] = field(default_factory=list)


def read_attempts(run_dir: str | Path) -> list[Attempt]:
    """Read all that was ever recorded, start by start; names of older files are translated to today's.

    Raises:
        UserError: the directory holds no metrics, or a line of them is damaged.
    """
    path = RunDirectory(run_dir).metrics
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise UserError(reason, file=path, fix="give a run directory, as `rewarm train` makes") from error
    found: list[Attempt] = []
    lines.pop()  # what follows the last newline is still being written
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, object_hook=_revive)
            if "restored_step" in record:
                found.append(Attempt(**{name: record[name] for name in _START}))
            else:
                found[-1].records.append(record)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            fix = "remove the line, or take the file from a backup"
            raise UserError("is not a record", file=f"{path}:{number}", fix=fix) from error
    return found


def read_metrics(run_dir: str | Path) -> list[Record]:
    """Read the run's history: one record per step in rising order, with all metrics of that step.

    Of a step that was trained again after a restore, the last attempt counts; what an attempt recorded
    beyond the step that the next one restored was undone, and is left to `read_attempts` and `trained_twice`.

    Raises:
        UserError: see `read_attempts`.
    """
    steps: dict[int, Record] = {}
    for attempt in read_attempts(run_dir):
        kept = -1 if attempt.restored_step is None else attempt.restored_step
        steps = {step: record for step, record in steps.items() if step <= kept}
        for record in attempt.records:
            steps.setdefault(record["step"], {}).update(record)
    return [steps[step] for step in sorted(steps)]


def trained_twice(run_dir: str | Path) -> list[tuple[Record, Record]]:
    """Read the steps that a restored attempt trained again: (before the restore, after it)."""
    pairs: list[tuple[Record, Record]] = []
    before: dict[int, Record] = {}
    for attempt in read_attempts(run_dir):
        now: dict[int, Record] = {}
        for record in attempt.records:
            now.setdefault(record["step"], {}).update(record)
        restored = -1 if attempt.restored_step is None else attempt.restored_step
        pairs += [(before[step], now[step]) for step in sorted(now) if step in before and step > restored]
        before |= now
    return pairs


_START = ("number", "restored_step", "time", "run_id")

_UNWRITABLE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Numbers that JSON cannot hold are written as these strings."""


def _revive(record: Record) -> Record:
    return {
        current_name(name): _UNWRITABLE.get(value, value) if isinstance(value, str) else value
        for name, value in record.items()
    }


class Jsonl:
    """Appends to `metrics.jsonl`, at full precision; nothing in it is ever rewritten."""

    def __init__(
        self, run_dir: Path, restored_step: int | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        path = RunDirectory(run_dir).metrics
        run_dir.mkdir(parents=True, exist_ok=True)
        earlier: list[Attempt] = []
        if path.exists():
            _drop_torn_line(path)
            earlier = read_attempts(run_dir)
        self.run_id = earlier[-1].run_id if earlier else uuid.uuid4().hex
        self._number = len(earlier) + 1
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        start = {"number": self._number, "restored_step": restored_step}
        self._write({**start, "time": self._clock(), "run_id": self.run_id})

    def log(self, record: Record) -> None:
        """Append one line, which survives a kill from here on.

        Raises:
            OSError: the disk is full; the line is written before the next one.
        """
        self._write({"attempt": self._number, "time": self._clock(), **record})

    def close(self) -> None:
        """Write what a full disk had refused, and make all lines survive a power cut."""
        with self._file:
            self._flush()
            os.fsync(self._file.fileno())

    def _write(self, record: Record) -> None:
        writable = {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in record.items()
        }
        self._unwritten += json.dumps(writable, allow_nan=False).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        """Write what is unwritten; what a full disk refuses is kept for the next call."""
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def _drop_torn_line(path: Path) -> None:
    """Remove the half line that a kill in the middle of a write leaves."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
