"""Records that are no documents: counted by reason, the first of them kept for a look, too many refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenization.disk import disk_errors, with_ending, write_atomically
from tokenization.errors import UserError
from tokenization.text import records
from tokenization.text.inputs import shown

_KEPT = 1000


class Rejects:
    """The rejects of one part; `PREFIX.rejects.jsonl` names the file and line of up to 1,000."""

    def __init__(self, prefix: Path, limit: int) -> None:
        """Begin to count towards `limit`, for the shard at `prefix`."""
        self.path = with_ending(prefix, ".rejects.jsonl")
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._kept: list[records.Reject] = []

    def add(self, found: Sequence[records.Reject]) -> None:
        """Count what a task has found.

        Raises:
            UserError: there are more than allowed; the file has been written.
        """
        self._counts.update(reject.why for reject in found)
        self._kept.extend(found[: _KEPT - len(self._kept)])
        total = self._counts.total()
        if total > self._limit:
            self.close()
            reject, line = records.number(self._kept[:1])[0]
            why, count = self._counts.most_common(1)[0]
            raise UserError(
                f"{reject.why}: {total:,} records are no documents ({count:,}: {why});"
                f" {self._limit:,} are allowed",
                file=f"{reject.path}:{line}",
                fix=f"see {self.path}, then fix the data or raise --max-rejects",
            )

    def close(self) -> dict[str, int]:
        """Write the file, if there is anything to write, and give the counts by reason."""
        with disk_errors(self.path):
            if self._kept:
                rows = (
                    {
                        "file": shown(reject.path),
                        "row" if reject.row else "line": place,
                        "why": reject.why,
                        "text": reject.excerpt,
                    }
                    for reject, place in records.number(self._kept)
                )
                write_atomically(
                    self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                )
            else:
                self.path.unlink(missing_ok=True)
        return dict(sorted(self._counts.items()))
