"""`metrics.jsonl`, the record of a run: written line by line, read back as attempts or as one history."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from tokenization.errors import UserError
from trainer.machine.log_lines import logger
from trainer.metrics.names import current_name
from trainer.storage.records import Say, read_json_lines, remove_torn_line
from trainer.storage.run_directory import RunDirectory

Record = dict[str, Any]
"""`attempt`, `step`, `tokens`, `time` (seconds since 1970) and metrics by name."""


MeasuredOn = dict[str, dict[str, Any]]
"""What the scores of each validation set are measured on; see `evaluation.held_out.measured_on`."""


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
    measured_on: MeasuredOn = field(default_factory=dict)
    """Empty where an earlier rewarm wrote the start."""


def read_attempts(run_dir: str | Path, say: Say = logger.warning) -> list[Attempt]:
    """Read all that was ever recorded, start by start; names of older files are translated to today's.

    Damaged lines are passed over and named to `say`, by default in the log. Where the line of a start is
    damaged, the start is made from the records that name its number: it restored the step before the first of
    them.

    Raises:
        UserError: the directory holds no metrics.
    """
    path = RunDirectory(run_dir).metrics
    try:
        lines = read_json_lines(path, _checked, say)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise UserError(reason, file=path, fix="give a run directory, as `rewarm train` makes") from error
    found: list[Attempt] = []
    for line in lines:
        if isinstance(line, Attempt):
            found.append(line)
            continue
        own = next((start for start in reversed(found) if start.number == line["attempt"]), None)
        if own is None:
            found.append(own := _start_of(line, found))
        own.records.append(line)
    return found


def read_metrics(run_dir: str | Path) -> list[Record]:
    """Read the run's history; see `history_of`.

    Raises:
        UserError: see `read_attempts`.
    """
    return history_of(read_attempts(run_dir))


def history_of(attempts: Sequence[Attempt]) -> list[Record]:
    """Return a run's history: one record per step in rising order, with all metrics of that step.

    Of a step that was trained again after a restore, the last attempt counts; what an attempt recorded
    beyond the step that the next one restored was undone, and is left to `read_attempts` and `trained_twice`.
    """
    steps: dict[int, Record] = {}
    for attempt in attempts:
        kept = -1 if attempt.restored_step is None else attempt.restored_step
        steps = {step: record for step, record in steps.items() if step <= kept}
        for record in attempt.records:
            steps.setdefault(record["step"], {}).update(record)
    return [steps[step] for step in sorted(steps)]


def trained_twice(attempts: Sequence[Attempt]) -> list[tuple[Record, Record]]:
    """Return the steps that a later attempt trained again: (before, after). Step 0 is scored, not trained."""
    pairs: list[tuple[Record, Record]] = []
    before: dict[int, Record] = {}
    for attempt in attempts:
        now: dict[int, Record] = {}
        for record in attempt.records:
            now.setdefault(record["step"], {}).update(record)
        restored = attempt.restored_step or 0
        pairs += [(before[step], now[step]) for step in sorted(now) if step in before and step > restored]
        before |= now
    return pairs


def equal_numbers(one: float, other: float) -> bool:
    """Whether two recorded numbers are the same to the last digit; NaN is the same as NaN."""
    return one == other or (math.isnan(one) and math.isnan(other))


_START = ("number", "restored_step", "time", "run_id")

_UNWRITABLE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Numbers that JSON cannot hold are written as these strings."""


def _checked(line: Mapping[str, Any]) -> Attempt | Record:
    """Return a line as what it records.

    Raises:
        KeyError, TypeError: it is not the record of a start or of a step.
    """
    if "restored_step" in line:
        start = Attempt(**{name: line[name] for name in _START}, measured_on=line.get("measured_on", {}))
        _require(isinstance(start.measured_on, dict))
        _require(all(isinstance(facts, dict) for facts in start.measured_on.values()))
        _require(type(start.number) is int and type(start.restored_step) in (int, NoneType))
        _require(isinstance(start.time, (int, float)) and isinstance(start.run_id, str))
        return start
    record = {
        current_name(name): _UNWRITABLE.get(value, value) if isinstance(value, str) else value
        for name, value in line.items()
    }
    _require(all(type(record[name]) is int for name in ("attempt", "step", "tokens")))
    _require(all(isinstance(value, (int, float)) for value in [*record.values(), record["time"]]))
    return record


def _require(valid: bool) -> None:
    if not valid:
        raise TypeError


def _start_of(record: Record, earlier: Sequence[Attempt]) -> Attempt:
    """Make the start that `record` is the first of; its own line is damaged."""
    restored = record["step"] - 1 if record["step"] else None
    before = earlier[-1] if earlier else Attempt(0, None, 0.0, "")
    return Attempt(record["attempt"], restored, record["time"], before.run_id, measured_on=before.measured_on)


class Jsonl:
    """Appends to `metrics.jsonl`, at full precision; nothing in it is ever rewritten."""

    def __init__(
        self,
        run_dir: Path,
        restored_step: int | None,
        clock: Callable[[], float] = time.time,
        measured_on: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._clock = clock
        path = RunDirectory(run_dir).metrics
        run_dir.mkdir(parents=True, exist_ok=True)
        remove_torn_line(path, logger.warning)
        earlier = read_attempts(run_dir) if path.exists() else []
        self.run_id = (earlier[-1].run_id if earlier else "") or uuid.uuid4().hex
        self._number = 1 + max((attempt.number for attempt in earlier), default=0)
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        start = {"number": self._number, "restored_step": restored_step}
        run = {"time": self._clock(), "run_id": self.run_id, "measured_on": dict(measured_on or {})}
        self._write({**start, **run})

    def log(self, record: Record) -> None:
        """Append one line, which survives a kill from here on.

        Raises:
            OSError: the disk is full; the line is written before the next one.
        """
        self._write({"attempt": self._number, "time": self._clock(), **record})

    def flush(self) -> None:
        """Nothing to do: lines are written at once."""

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
