"""Exact shares: at every prefix each source is strictly within one sample of its weight."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.mixer.interleave import Period, denominator

shares_lists = st.lists(st.integers(0, 400), min_size=1, max_size=20).filter(any)


def period_of(shares):
    return Period([Fraction(share, sum(shares)) for share in shares])


def assert_within_one(period):
    """Over two periods and a bit, in whole numbers: |count * D - samples * share| < D at every prefix."""
    source, _ = period.at(np.arange(2 * period.length + 3))
    counts = (source[:, None] == np.arange(len(period.shares))).cumsum(axis=0)
    samples = np.arange(1, len(source) + 1)[:, None]
    assert (np.abs(counts * period.length - samples * period.shares) < period.length).all()


def test_small_weights_exhaustively():
    for sources in range(1, 5):
        for shares in product(range(7), repeat=sources):
            if any(shares):
                assert_within_one(period_of(shares))


@settings(deadline=None, max_examples=60)
@given(shares_lists)
def test_any_weights(shares):
    assert_within_one(period_of(shares))


@pytest.mark.parametrize(
    "shares", [[1, 9999], [9999, 1], [1] * 19 + [9981], [5000] + [1] * 500 + [4500], [3334, 3333, 3333]]
)
def test_lopsided_weights(shares):
    assert_within_one(period_of(shares))


def test_by_hand():
    # A may lie in slots 0-1, 1-2, 2-3 and B in 0-3; the window that closes first wins, A before B in a tie
    assert Period([Fraction(3, 4), Fraction(1, 4)]).at(np.arange(8))[0].tolist() == [0, 0, 0, 1] * 2
    # A: 0-1, 2-3; B: 0-3; C: 0-3
    assert Period([Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]).at(np.arange(4))[0].tolist() == [
        0,
        1,
        0,
        2,
    ]
    # weights that were not written on their common denominator
    assert denominator([Fraction(1, 6), Fraction(1, 3), Fraction(1, 2)]) == 6
    assert Period([Fraction(0), Fraction(1)]).at(np.arange(3))[0].tolist() == [1, 1, 1]


@settings(deadline=None, max_examples=60)
@given(shares_lists, st.integers(0, 10**15))
def test_counting_agrees_with_scanning_and_finding_undoes_it(shares, begin):
    period = period_of(shares)
    samples = begin + np.arange(50)
    source, ordinal = period.at(samples)
    counts = period.counts(begin)
    for sample, s, o in zip(samples.tolist(), source.tolist(), ordinal.tolist(), strict=True):
        assert o == counts[s]
        assert period.find(s, o) == sample
        counts[s] += 1
    assert period.counts(begin + 50).tolist() == counts.tolist()
    assert counts.sum() == begin + 50


@pytest.mark.parametrize("batch", [8, 1024])
@pytest.mark.parametrize("share", [Fraction(1, 1000), Fraction(1, 4)])
def test_a_share_is_as_exact_in_small_batches_as_in_large(batch, share):
    period = Period([share, 1 - share])
    for k in [*range(400), 10**9, 10**12 + 7]:
        assert abs(period.counts(k * batch)[0] - share * k * batch) < 1


def test_weights_that_do_not_add_up_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="do not add up"):
        Period([Fraction(1, 2), Fraction(1, 3)])
