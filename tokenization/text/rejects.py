"""Records that are not documents: counted by reason, listed up to a number, and refused beyond a limit."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from tokenization.disk import disk_errors, with_ending, write_atomically
from tokenization.errors import UserError
from tokenization.text import records
from tokenization.text.inputs import shown

Limit = int | Fraction | None
"""How many records may be lost: a number, a share, or None for the default share."""

_DEFAULT_LIMIT = Fraction(1, 10)

_KEPT = 1000

_NAMED = 3

_EARLY = 1000
"""Lost records that are allowed before the share of all records is known."""


class LeftOut:
    """How many records were read, and how many of them are not documents, by the reason."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.records = 0
        self.counts: Counter[str] = Counter()
        self.kept: list[records.Reject] = []
        """The first rejects."""
        self._encoding = encoding
        self._files: dict[str, dict[str, None]] = {}

    def add(self, documents: int, rejects: Sequence[records.Reject]) -> None:
        """Count the documents and rejects of some blocks."""
        self.records += documents + len(rejects)
        self.counts.update(reject.why for reject in rejects)
        self.kept.extend(rejects[: _KEPT - len(self.kept)])
        for reject in rejects:
            files = self._files.setdefault(reject.why, {})
            if len(files) <= _NAMED:
                files[shown(os.path.basename(reject.path))] = None

    @property
    def lost(self) -> int:
        """Records whose text is lost: all except empty ones."""
        return sum(count for why, count in self.counts.items() if why not in records.EMPTY)

    @property
    def files(self) -> dict[str, list[str]]:
        """The names of the first files that have such records, by the reason."""
        return {
            why: [*names][:_NAMED] + ["…"] * (len(names) > _NAMED)
            for why, names in sorted(self._files.items())
        }

    def lines(self) -> list[str]:
        """Return a line for each reason."""
        return [line(why, self.counts[why], names, self.records) for why, names in self.files.items()]

    def check(self, limit: Limit, *, finished: bool = True, listed: Path | None = None) -> None:
        """Refuse more lost records than `limit`: a number, or a share of all records.

        A share is compared at the end; before the end, only the loss of most records is refused.

        Raises:
            UserError: there are more; it names the first one, and the file `listed` with others.
        """
        lost, limit = self.lost, _DEFAULT_LIMIT if limit is None else limit
        if isinstance(limit, int):
            allowed = lost <= limit
        elif finished:
            allowed = lost <= limit * self.records
        else:
            allowed = lost <= _EARLY or lost <= max(limit, Fraction(1, 2)) * self.records
        if allowed:
            return
        first = next((reject for reject in self.kept if reject.why not in records.EMPTY), self.kept[0])
        _, place = records.number([first], self._encoding)[0]
        why, count = max(self.counts.items(), key=lambda item: (item[0] not in records.EMPTY, item[1]))
        most = "" if (why, count) == (first.why, lost) else f" ({count:,}: {why})"
        raise UserError(
            f"{first.why}: {lost:,} of {self.records:,} records are not documents{most};"
            f" {_limit_text(limit)} are allowed",
            file=f"{first.path}:{place}",
            fix=f"{fix(why, listed)} (or raise --max-rejects)",
        )


def line(why: str, count: int, files: Sequence[str], of: int | None = None) -> str:
    """Return a line about the records that are left out for one reason."""
    total = "" if of is None else f" of {of:,} records"
    named = f" ({', '.join(files)})" if files else ""
    option = f"; {fix(why)}" if why.startswith(records.OTHER_ENCODING) else ""
    return f"left out {count:,}{total}: {why}{named}{option}"


def fix(why: str, listed: Path | str | None = None) -> str:
    """Return how to fix records that are left out for that reason; `listed` is a file that lists some."""
    if why.startswith(records.OTHER_ENCODING):
        return f"give --encoding {why.removeprefix(records.OTHER_ENCODING)}"
    if why.startswith(("has no field", "is not text", "is null")):
        return "is --text-field right?"
    if why == records.LONG:
        return "give --documents lines or blocks if it is plain text"
    return f"see {listed} and fix the data" if listed else "fix the data"


def _limit_text(limit: int | Fraction) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{float(limit):.4%}".rstrip("0%").rstrip(".") + "%"


class Rejects:
    """The rejects of one part; `PREFIX.rejects.jsonl` names the file and line of up to 1,000."""

    def __init__(self, prefix: Path, limit: Limit, encoding: str = "utf-8") -> None:
        """Start to count towards `limit`, for the shard at `prefix`."""
        self.path = with_ending(prefix, ".rejects.jsonl")
        self.left_out = LeftOut(encoding)
        self._limit, self._encoding = limit, encoding

    def add(self, documents: int, found: Sequence[records.Reject], *, finished: bool = False) -> None:
        """Count the records of a task; with `finished` all tasks are done.

        Raises:
            UserError: there are more than allowed; the file has been written.
        """
        self.left_out.add(documents, found)
        try:
            self.left_out.check(self._limit, finished=finished, listed=self.path)
        except UserError:
            self.close()
            raise

    def close(self) -> dict[str, int]:
        """Write the list of rejects, or remove an old one, and return the counts by reason."""
        with disk_errors(self.path):
            if self.left_out.kept:
                rows = (
                    {
                        "file": shown(reject.path),
                        "row" if reject.row else "line": place,
                        "why": reject.why,
                        "text": reject.excerpt,
                    }
                    for reject, place in records.number(self.left_out.kept, self._encoding)
                )
                write_atomically(
                    self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                )
            else:
                self.path.unlink(missing_ok=True)
        return dict(sorted(self.left_out.counts.items()))
