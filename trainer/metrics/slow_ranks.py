"""The spread of the ranks' own times: which rank makes the others wait."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from trainer.metrics import names

SLOW = 1.5
"""A rank is slow if it takes so many times as long as the median rank for its own part of a step."""

FOR_LINES = 3
"""Lines of the log in a row for which a rank must be slow before it is named."""


class SlowRanks:
    """Adds up what each rank takes for its own part of the steps between two lines of the log.

    A step ends on all ranks at once, so that its length tells nothing of a single one. What is compared is
    the time of the forward passes and of the wait for data. Under ZeRO-3 a forward pass also waits for the
    weights of other ranks, so that a slow rank shows less.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        """Take the host of each rank."""
        self._hosts = hosts
        self._sums, self._steps = [0.0] * len(hosts), 0
        self._slow, self._lines, self._named = -1, 0, -1

    def add(self, rank_seconds: Sequence[float]) -> None:
        """Count a step."""
        self._sums = [total + own for total, own in zip(self._sums, rank_seconds, strict=True)]
        self._steps += 1

    def read(self) -> tuple[dict[str, float], str | None]:
        """Return the metrics since the last call, and a line if a rank has been slow for long enough."""
        sums, steps = self._sums, self._steps
        self._sums, self._steps = [0.0] * len(sums), 0
        if len(sums) < 2 or not steps or max(sums) == 0:
            return {}, None
        median, most = statistics.median_low(sums) / steps, max(sums) / steps
        found = {names.RANK_MEDIAN_S: median, names.RANK_MAX_S: most}
        slowest = sums.index(max(sums))
        slow = slowest if most > SLOW * median else -1
        self._lines = self._lines + 1 if slow == self._slow else 1
        self._slow = slow
        if slow < 0:
            self._named = -1 if self._lines >= FOR_LINES else self._named
        elif self._lines >= FOR_LINES and slow != self._named:
            self._named = slow
            where = f"rank {slow} (host {self._hosts[slow]})"
            return found, (
                f"{where} is slow: its forward passes and its wait for data take {most:.3g} s a step, "
                f"those of the median rank {median:.3g} s; all ranks wait for it"
            )
        return found, None
