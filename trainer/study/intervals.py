"""Intervals for means over a few seeds, and how many seeds a decision would take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

LEVEL = 0.95
"""Of every interval that is shown."""

MOST_SEEDS = 50
"""Beyond so many, more seeds are not what a study lacks."""


@dataclass(frozen=True)
class Interval:
    """A mean with the interval that holds the true one at a level, by Student's t distribution."""

    mean: float
    low: float
    high: float
    spread: float
    """Standard deviation of the single values; NaN from fewer than two."""
    count: int

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:+.4f} (one seed)" if self.count else "–"
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of independent values and its interval, infinitely wide for fewer than two values."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, -math.inf, math.inf, math.nan, 0)
    if not all(map(math.isfinite, values)):
        return Interval(math.nan, -math.inf, math.inf, math.nan, count)
    mean = fmean(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, math.nan, 1)
    spread = stdev(values)
    half = half_width(spread, count, level)
    return Interval(mean, mean - half, mean + half, spread, count)


def half_width(spread: float, count: int, level: float = LEVEL) -> float:
    """Return half the width of the interval for the mean of `count` values of this standard deviation."""
    return float(stats.t.ppf((1 + level) / 2, count - 1)) * spread / math.sqrt(count)


def seeds_needed(spread: float, distance: float, level: float = LEVEL) -> int | None:
    """Return the fewest seeds whose interval is narrower than `distance` on each side; None beyond 50.

    It takes the spread for what it is among the seeds so far, which few seeds tell only roughly.
    """
    wide_enough = (count for count in range(2, MOST_SEEDS + 1) if half_width(spread, count, level) < distance)
    return next(wide_enough, None)
