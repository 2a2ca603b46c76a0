"""Arms over seeds: the front, the bands and the table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.studies import arm
from trainer.study.results import ScoreCurve
from trainer.study.summary import band_of, forgetting_of, pareto_front, summarize, summary_table

numbers = st.floats(-5, 5) | st.just(math.nan) | st.just(math.inf)


@given(points=st.lists(st.tuples(numbers, numbers), max_size=12))
def test_the_front_is_what_no_point_beats(points):
    front = pareto_front(points)
    finite = [point for point in points if all(map(math.isfinite, point))]
    for point in finite:
        beaten = any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in finite)
        assert (point in [points[number] for number in front]) is not beaten
    assert [points[number] for number in front] == sorted({points[number] for number in front})


def test_a_band_holds_every_seed_at_the_tokens_that_all_have():
    one = ScoreCurve((0, 10, 20), (1.0,) * 3, (3.0, 2.0, 1.0))
    other = ScoreCurve((0, 10, 25), (1.0,) * 3, (5.0, 4.0, 0.0))
    band = band_of([one, other])
    assert (band.tokens, band.means) == ((0, 10), (4.0, 3.0))
    assert band.range == ((3.0, 5.0), (2.0, 4.0))
    lost = ScoreCurve((0, 10), (1.0,) * 2, (5.0, math.inf))
    assert band_of([one, lost]).tokens == (0,)
    assert band_of([]).tokens == ()


def test_the_table_has_a_row_per_arm_and_says_what_did_not_end():
    arms = [arm("a", seed, 2.5 + seed / 10, 2.1) for seed in range(3)]
    arms += [
        arm("b", 0, 2.2, 2.4),
        arm("b", 1, math.inf, math.inf, diverged=True),
        arm("b", 2, 2.2, 2.9, finished=False),
    ]
    first, second = summarize(arms)
    assert first.interval(forgetting_of).mean == pytest.approx(0.6)
    table = summary_table([first, second]).splitlines()
    # mean 2.6, deviation 0.1, t 4.303: half the width is 0.2484
    assert table[2].split()[:5] == ["a", "3", "2.6000", "[2.3516,", "2.8484]"]
    assert table[3].split()[:4] == ["b", "1", "2.2000", "+0.2000"]
    assert table[3].endswith("1 diverged, 1 not finished")
