"""Intervals of means: Student's table, and what more seeds would do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.study.intervals import half_width, seeds_needed, t_interval


def test_an_interval_by_hand():
    # mean 2, standard deviation 1, and 4.303 is the table's t for 2 degrees of freedom at 95 %
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.spread, found.count) == (2.0, 1.0, 3)
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert found.mean - found.low == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert str(t_interval([1.0, 1.0])) == "+1.0000 [+1.0000, +1.0000]"


def test_fewer_than_two_values_say_nothing_of_the_spread():
    alone, none = t_interval([0.5]), t_interval([])
    assert (alone.mean, alone.low, alone.high) == (0.5, -math.inf, math.inf)
    assert math.isnan(alone.spread)
    assert math.isnan(none.mean)
    assert str(alone) == "+0.5000 (one seed)"


@given(
    values=st.lists(st.floats(-10, 10), min_size=2, max_size=8),
    shift=st.floats(-5, 5),
)
def test_a_shift_of_all_values_shifts_the_interval(values, shift):
    before, after = t_interval(values), t_interval([value + shift for value in values])
    assert after.low == pytest.approx(before.low + shift, abs=1e-6)
    assert after.high == pytest.approx(before.high + shift, abs=1e-6)


@given(spread=st.floats(0.01, 1), distance=st.floats(0.01, 5))
def test_so_many_seeds_are_enough_and_one_fewer_is_not(spread, distance):
    needed = seeds_needed(spread, distance)
    if needed is None:
        assert half_width(spread, 50) >= distance
    else:
        assert half_width(spread, needed) < distance
        assert needed == 2 or half_width(spread, needed - 1) >= distance
