"""A study's arms over their seeds: ends with intervals, curves with bands, and the trade-off's front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tokenization.tables import text_table
from trainer.study.intervals import Interval, t_interval
from trainer.study.results import Arm, ScoreCurve


@dataclass(frozen=True)
class Summary:
    """An arm of a study over its seeds."""

    name: str
    size: str
    arms: tuple[Arm, ...]
    """One per seed."""

    @property
    def title(self) -> str:
        """The name, with the size where there are several."""
        return f"{self.name} ({self.size})" if self.size else self.name

    @property
    def ended(self) -> tuple[Arm, ...]:
        """The seeds whose run finished with losses that are finite."""
        return tuple(arm for arm in self.arms if arm.finished and not arm.diverged)

    def interval(self, measure: Callable[[Arm], float]) -> Interval:
        """Return the interval of a number of the arm over the seeds that ended and have it."""
        found = [measure(arm) for arm in self.ended]
        return t_interval([value for value in found if math.isfinite(value)])

    @property
    def note(self) -> str:
        """What a reader must know: seeds that did not end."""
        diverged = sum(arm.diverged for arm in self.arms)
        unfinished = sum(not arm.finished and not arm.diverged for arm in self.arms)
        parts = [
            f"{diverged} diverged" if diverged else "",
            f"{unfinished} not finished" if unfinished else "",
        ]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Band:
    """A curve over seeds: at each number of tokens the mean, the lowest and the highest score."""

    tokens: tuple[int, ...]
    means: tuple[float, ...]
    range: tuple[tuple[float, float], ...]


def summarize(arms: Iterable[Arm]) -> list[Summary]:
    """Gather the seeds of each arm, in the order in which arms first come."""
    groups: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.size, arm.name), []).append(arm)
    return [Summary(name, size, tuple(found)) for (size, name), found in groups.items()]


def band_of(curves: Sequence[ScoreCurve]) -> Band:
    """Return mean and range at the tokens that all curves have a finite score at; empty without curves."""
    scores = [
        {at: bits for at, bits in zip(curve.tokens, curve.bits_per_byte, strict=True) if math.isfinite(bits)}
        for curve in curves
    ]
    common = sorted(set.intersection(*map(set, scores))) if scores else []
    columns = [[score[at] for score in scores] for at in common]
    means = tuple(fmean(column) for column in columns)
    return Band(tuple(common), means, tuple((min(column), max(column)) for column in columns))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the numbers of the points that no other is better than in both coordinates, from left to right.

    Less is better. Of equal points the first counts; points that are not finite are on no front.
    """
    finite = [number for number, point in enumerate(points) if all(map(math.isfinite, point))]
    front: list[int] = []
    for number in sorted(finite, key=lambda number: (points[number], number)):
        if not front or points[number][1] < points[front[-1]][1]:
            front.append(number)
    return front


def forgetting_of(arm: Arm) -> float:
    """Return the arm's forgetting in bits per byte."""
    return arm.forgetting


def downstream_of(arm: Arm) -> float:
    """Return the arm's last downstream bits per byte."""
    return arm.downstream.end


def upstream_of(arm: Arm) -> float:
    """Return the arm's last upstream bits per byte."""
    return arm.upstream.end


HEAD = ("arm", "seeds", "upstream", "forgetting", "downstream", "")
"""Of the table: bits per byte at the end, as means with 95 % intervals."""


def row(summary: Summary) -> tuple[str, ...]:
    """Return an arm's row below `HEAD`."""
    upstream, downstream = summary.interval(upstream_of), summary.interval(downstream_of)
    forgetting = summary.interval(forgetting_of)
    cells = (_plain(upstream), str(forgetting), _plain(downstream))
    return (summary.title, str(len(summary.ended)), *cells, summary.note)


def summary_table(summaries: Sequence[Summary]) -> str:
    """Return the table as text."""
    return text_table(HEAD, [row(one) for one in summaries], "<>>>><")


def _plain(interval: Interval) -> str:
    """Write a loss, which needs no sign."""
    return str(interval).replace("+", "").replace(" (one seed)", "") if interval.count else "–"
