"""Reading a run's `metrics.jsonl`: every attempt, or the history as it stands."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import UserError

FILE = "metrics.jsonl"
"""One JSON object a line: a start of the run (`number`, `restored_step`), or the metrics of a step."""

Record = dict[str, Any]
"""`attempt`, `step`, `tokens`, `time` (seconds since 1970) and metrics by name."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run, until it ended or was killed."""

    number: int
    """1 for the first start."""
    restored_step: int | None
    """Last step of the checkpoint that it went on from; None when it started afresh."""
    time: float
    run_id: str
    records: list[Record] = field(default_factory=list)


def attempts(run_dir: str | Path) -> list[Attempt]:
    """All that was ever recorded, start by start.

    Raises:
        UserError: the directory holds no metrics, or a line of them is damaged.
    """
    path = Path(run_dir) / FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise UserError(reason, file=path, mend="give a run directory, as `rewarm train` makes") from error
    found: list[Attempt] = []
    lines.pop()  # What follows the last newline is still being written.
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, object_hook=_revive)
            if "restored_step" in record:
                found.append(Attempt(**{name: record[name] for name in _START}))
            else:
                found[-1].records.append(record)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            mend = "remove the line, or take the file from a backup"
            raise UserError("is not a record", file=f"{path}:{number}", mend=mend) from error
    return found


def read(run_dir: str | Path) -> list[Record]:
    """The run's history, one record per step in rising order, with all metrics of that step.

    A step that was done again after a restore counts as the last attempt did it; what lies beyond a
    restored step was undone, and stays in the file for `attempts` and `done_twice`.

    Raises:
        UserError: see `attempts`.
    """
    steps: dict[int, Record] = {}
    for attempt in attempts(run_dir):
        kept = -1 if attempt.restored_step is None else attempt.restored_step
        steps = {step: record for step, record in steps.items() if step <= kept}
        for record in attempt.records:
            steps.setdefault(record["step"], {}).update(record)
    return [steps[step] for step in sorted(steps)]


def done_twice(run_dir: str | Path) -> list[tuple[Record, Record]]:
    """Steps that a restored attempt did again: (as it was before, as it was afterwards)."""
    pairs: list[tuple[Record, Record]] = []
    before: dict[int, Record] = {}
    for attempt in attempts(run_dir):
        now: dict[int, Record] = {}
        for record in attempt.records:
            now.setdefault(record["step"], {}).update(record)
        restored = -1 if attempt.restored_step is None else attempt.restored_step
        pairs += [(before[step], now[step]) for step in sorted(now) if step in before and step > restored]
        before |= now
    return pairs


_START = ("number", "restored_step", "time", "run_id")

_UNWRITABLE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Numbers that JSON has no form for; written as these strings."""


def _revive(record: Record) -> Record:
    return {
        name: _UNWRITABLE.get(value, value) if isinstance(value, str) else value
        for name, value in record.items()
    }
