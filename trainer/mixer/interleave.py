"""Which source sample i comes from: exact shares at every prefix, from a table of one period.

With weights a_s / D (whole a_s that add up to D) the interleaving repeats every D samples. Within the period
it solves Tijdeman's chairman assignment problem (Discrete Mathematics 32, 1980): each source's count over the
first t samples is *strictly* within one of t * a_s / D, for every t. The j-th sample of source s may
therefore lie in the slots from floor((j-1) D / a_s) to ceil(j D / a_s) - 1. At most floor(t2 a_s / D) -
ceil(t1 a_s / D) of these windows lie inside any stretch [t1, t2), which over all sources is never more than
t2 - t1; so by Hall's theorem all samples fit, and filling each slot with the open window that closes first
finds the arrangement.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

from trainer.mixer.permutation import Ints

LONGEST = 2**20
"""Samples in the longest period, which takes ten megabytes and half a second to arrange."""


def denominator(weights: Sequence[Fraction]) -> int:
    """Return the length of the period for these weights: their least common denominator."""
    return lcm(*(weight.denominator for weight in weights))


class Period:
    """One period of the interleaving; `weights` add up to 1, and a weight of 0 leaves its source out."""

    def __init__(self, weights: Sequence[Fraction]) -> None:
        self.length = denominator(weights)
        self.shares: Ints = np.array([int(weight * self.length) for weight in weights], np.int64)
        if self.shares.sum() != self.length or self.shares.min() < 0:
            raise ValueError(f"weights {[str(weight) for weight in weights]} do not add up to 1")
        self._source = _arrange(self.shares, self.length)
        self._slots = np.argsort(self._source, kind="stable").astype(np.int32)
        self._first = np.concatenate([[0], np.cumsum(self.shares)])
        self._ordinal = np.empty(self.length, np.int32)
        self._ordinal[self._slots] = np.arange(self.length) - np.repeat(self._first[:-1], self.shares)

    def at(self, samples: Ints) -> tuple[Ints, Ints]:
        """Return for each sample its source, and how many samples of that source came before."""
        periods, slot = np.divmod(samples, self.length)
        source = self._source[slot].astype(np.int64)
        return source, periods * self.shares[source] + self._ordinal[slot]

    def counts(self, samples: int) -> Ints:
        """Count the samples of each source within the first `samples`: [sources]."""
        periods, slot = divmod(samples, self.length)
        within = [
            np.searchsorted(self._slots[begin:end], slot)
            for begin, end in zip(self._first[:-1], self._first[1:], strict=True)
        ]
        return periods * self.shares + np.array(within, np.int64)

    def find(self, source: int, ordinal: int) -> int:
        """Return the sample that is number `ordinal` (from 0) of its source, whose weight is not 0."""
        periods, within = divmod(ordinal, int(self.shares[source]))
        return periods * self.length + int(self._slots[self._first[source] + within])


@lru_cache(maxsize=16)
def period(weights: tuple[Fraction, ...]) -> Period:
    """Return the period for these weights, which is arranged once."""
    return Period(weights)


@lru_cache(maxsize=8192)
def counts_within(weights: tuple[Fraction, ...], samples: int) -> tuple[int, ...]:
    """Count the samples of each source within the first `samples` of an interleaving, once."""
    return tuple(period(weights).counts(samples).tolist())


def _arrange(shares: Ints, length: int) -> np.ndarray:
    """Give each slot a source (int16): of the open windows the first to close; ties in source order."""
    source = np.repeat(np.arange(len(shares)), shares)
    ordinal = np.arange(length) - np.repeat(np.cumsum(shares) - shares, shares)
    opens = ordinal * length // shares[source]
    closes = -(-(ordinal + 1) * length // shares[source])
    order = np.argsort(opens, kind="stable")
    urgency = (closes * len(shares) + source)[order].tolist()
    opened = np.searchsorted(opens[order], np.arange(length), side="right").tolist()
    waiting: list[int] = []
    taken, known = [], 0
    for last in opened:
        for window in urgency[known:last]:
            heapq.heappush(waiting, window)
        known = last
        taken.append(heapq.heappop(waiting))
    return (np.array(taken) % len(shares)).astype(np.int16)
