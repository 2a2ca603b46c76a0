"""Records that are no documents: counted by reason, the first of them kept for a look, too many refused."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from tokenization import records
from tokenization.errors import UserError
from tokenization.inputs import shown
from tokenization.shard_format import beside, disk, write_atomically

Limit = int | Fraction | None
"""How many records may be lost: a number, a share, or the usual share."""

_USUAL = Fraction(1, 10)
_KEPT = 1000
_NAMED = 3
_EARLY = 1000
"""So many lost records may already tell what a share would tell at the end."""


class LeftOut:
    """How many records were read, and how many of them are no documents, by the reason."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.records = 0
        self.counts: Counter[str] = Counter()
        self.kept: list[records.Reject] = []
        """The first of them."""
        self._encoding = encoding
        self._files: dict[str, dict[str, None]] = {}

    def add(self, documents: int, rejects: Sequence[records.Reject]) -> None:
        """Count what was found in some blocks."""
        self.records += documents + len(rejects)
        self.counts.update(reject.why for reject in rejects)
        self.kept.extend(rejects[: _KEPT - len(self.kept)])
        for reject in rejects:
            files = self._files.setdefault(reject.why, {})
            if len(files) <= _NAMED:
                files[shown(os.path.basename(reject.path))] = None

    @property
    def lost(self) -> int:
        """Records whose text is lost: all but those that have none."""
        return sum(count for why, count in self.counts.items() if why not in records.EMPTY)

    @property
    def files(self) -> dict[str, list[str]]:
        """By the reason, the names of the first files that have such records."""
        return {
            why: [*names][:_NAMED] + ["…"] * (len(names) > _NAMED)
            for why, names in sorted(self._files.items())
        }

    def lines(self) -> list[str]:
        """For a reader: a line for each reason."""
        return [line(why, self.counts[why], names, self.records) for why, names in self.files.items()]

    def check(self, limit: Limit, *, finished: bool = True, listed: Path | None = None) -> None:
        """Refuse more lost records than `limit`: a number, or a share of all records.

        A share is held against the whole, once all is read; before, only if most records are lost.

        Raises:
            UserError: there are more; the first one is named, and `listed`, where others are.
        """
        lost, limit = self.lost, _USUAL if limit is None else limit
        if isinstance(limit, int):
            borne = lost <= limit
        elif finished:
            borne = lost <= limit * self.records
        else:
            borne = lost <= _EARLY or lost <= max(limit, Fraction(1, 2)) * self.records
        if borne:
            return
        first = next((reject for reject in self.kept if reject.why not in records.EMPTY), self.kept[0])
        _, place = records.number([first], self._encoding)[0]
        why, count = max(self.counts.items(), key=lambda item: (item[0] not in records.EMPTY, item[1]))
        most = "" if (why, count) == (first.why, lost) else f" ({count:,}: {why})"
        raise UserError(
            f"{first.why}: {lost:,} of {self.records:,} records are not documents{most};"
            f" {_told(limit)} are allowed",
            file=f"{first.path}:{place}",
            mend=f"{mend(why, listed)} (or raise --max-rejects)",
        )


def line(why: str, count: int, files: Sequence[str], of: int | None = None) -> str:
    """What a reader is told of the records that are left out for one reason."""
    total = "" if of is None else f" of {of:,} records"
    named = f" ({', '.join(files)})" if files else ""
    option = f"; {mend(why)}" if why.startswith(records.OTHER_ENCODING) else ""
    return f"left out {count:,}{total}: {why}{named}{option}"


def mend(why: str, listed: Path | str | None = None) -> str:
    """What to do about records that are left out for that reason; `listed` is a file that lists some."""
    if why.startswith(records.OTHER_ENCODING):
        return f"give --encoding {why.removeprefix(records.OTHER_ENCODING)}"
    if why.startswith(("has no field", "is not text", "is null")):
        return "is --text-field right?"
    if why == records.LONG:
        return "give --documents lines or blocks if it is plain text"
    return f"see {listed} and mend the data" if listed else "mend the data"


def _told(limit: int | Fraction) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{float(limit):.4%}".rstrip("0%").rstrip(".") + "%"


class Rejects:
    """The rejects of one part; `PREFIX.rejects.jsonl` names the file and line of up to 1,000."""

    def __init__(self, prefix: Path, limit: Limit, encoding: str = "utf-8") -> None:
        """Begin to count towards `limit`, for the shard at `prefix`."""
        self.path = beside(prefix, ".rejects.jsonl")
        self.left_out = LeftOut(encoding)
        self._limit, self._encoding = limit, encoding

    def add(self, documents: int, found: Sequence[records.Reject], *, finished: bool = False) -> None:
        """Count what a task has found; with `finished` all tasks are done.

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
        """Write the file, if there is anything to write, and give the counts by reason."""
        with disk(self.path):
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
