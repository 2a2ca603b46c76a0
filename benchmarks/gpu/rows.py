"""What a step of benchmarks/gpu.sh shares with the driver: its options and the rows that it prints.

A step is a module that runs as `python -m benchmarks.gpu.STEP --out DIR [--cpu] [--minutes M]`. It
prints one JSON object per line on standard output, with `row`; all else goes to standard error, which
the driver keeps in DIR/STEP.log. Its exit status is 0 when it came to its end, whatever it found.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Row:
    """One thing that was found."""

    step: str
    name: str
    ok: bool | None
    """Whether it works; None: it was not tried (the note says why), or is a number and no more."""
    value: float | str | None
    unit: str
    note: str


@dataclass(frozen=True)
class Options:
    """What the driver tells a step."""

    out: Path
    """An existing directory for results; at most one log per step may be added to it."""
    cpu: bool
    """Run toy sizes without a card."""
    minutes: float
    """What the step may take; it is killed with its children when that is over."""


def options(arguments: list[str] | None = None) -> Options:
    """Read a step's command line; from here on standard output holds rows alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    _reserve()
    return Options(given.out, given.cpu, given.minutes)


_kept: TextIO | None = None


def _reserve() -> TextIO:
    """Keep the standard output for rows; what libraries and children print goes to standard error."""
    global _kept
    if _kept is None:
        sys.stdout.flush()
        _kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    return _kept


def row(
    name: str,
    ok: bool | None = None,
    value: float | str | None = None,
    unit: str = "",
    note: str = "",
    step: str | None = None,
) -> None:
    """Print a row at once; `step` is the running module's name unless given."""
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)  # JSON has neither infinities nor NaN
    found = Row(step or Path(sys.argv[0]).stem, name, ok, value, unit, note)
    rows = _reserve()
    rows.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
    rows.flush()


def found(out: Path, step: str, name: str) -> Row | None:
    """Return what an earlier step wrote in `out`: its last row of this name; None if it got no further."""
    path = out / "results.jsonl"
    if not path.is_file():
        return None
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return next((one for one in reversed(rows) if (one.step, one.name) == (step, name)), None)


@contextmanager
def trial(name: str) -> Iterator[None]:
    """Turn an exception into a row that is not ok, so that what follows is still tried."""
    try:
        yield
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        text = " ".join(str(error).split())
        row(name, ok=False, note=f"{type(error).__name__}: {text[:300]}")
