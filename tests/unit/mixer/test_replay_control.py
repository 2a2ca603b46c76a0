"""The forgetting budget's controller on synthetic plants, and as a pure function."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.plants import BUDGET, HIGHEST, LOWEST, OFFSET, Plants, judge, steer
from trainer.mixer.replay_control import (
    FALL,
    PARTS,
    RISE,
    Bounds,
    ControlSettings,
    ControlState,
    Reading,
    decide_replay,
    round_reading,
)

SETTINGS = ControlSettings(BUDGET)


def one_plant(size, gain, lag):
    return Plants(*(np.array([value]) for value in (size, gain, lag, 0.0, 0.0, 0.0, 0.0)))


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("decisions", [50, 100])
def test_the_budget_holds_and_costs_few_new_tokens(kind, decisions):
    found = judge(Plants.draw(400, seed=7), kind, decisions)
    assert found["can"] > 0.7  # of these plants the budget can be held at all
    assert found["end"] <= 0.07
    assert found["path"] <= (0.25 if decisions == 50 else 0.12)
    assert found["new"] >= 0.93
    assert found["alarm"] <= 0.05


@pytest.mark.parametrize("gain", [0.4, 1.2])
def test_a_gain_that_is_wrong_costs_little(gain):
    found = judge(Plants.draw(200, seed=8), "wsd", 100, settings=ControlSettings(BUDGET, gain=gain))
    assert found["end"] <= 0.07
    assert found["new"] >= 0.93


def test_raw_weights_hold_it_too_but_waste_new_tokens():
    raw, averaged = (judge(Plants.draw(100, seed=9), "wsd", 50, raw=raw) for raw in (True, False))
    assert raw["end"] <= 0.07
    assert raw["new"] < averaged["new"] - 0.1


@pytest.mark.parametrize("gain", [0.6, 0.9, 1.3])
@pytest.mark.parametrize("lag", [0.03, 0.1, 0.4])
def test_it_settles_without_a_limit_cycle(gain, lag):
    path, ratios, _ = steer(one_plant(0.06, gain, lag), 0, "wsd", 100)
    assert np.ptp(ratios[-10:]) <= 0.05 * ratios[-1]
    assert 0.5 * BUDGET < path[-1] <= BUDGET or ratios[-1] == LOWEST / PARTS


@pytest.mark.parametrize("sign", [0, -1])
def test_a_dead_and_a_flipped_plant_cannot_be_held(sign):
    plant = one_plant(0.1, 0.8, 0.1)
    _, ratios, held = steer(plant, 0, "wsd", 100, sign=sign)
    assert not held.all()
    assert ratios[-1] == HIGHEST / PARTS


def test_a_plant_that_forgets_nothing_gives_the_least_replay():
    _, ratios, held = steer(one_plant(1e-6, 0.8, 0.1), 0, "wsd", 100)
    assert held.all()
    assert ratios[-1] == LOWEST / PARTS


def test_the_ratio_may_rise_and_not_fall_before_the_burn_in_is_over():
    start = ControlState.starting_at(Fraction(1, 4), BUDGET, at_base=True)
    bounds = Bounds(LOWEST, HIGHEST)
    for warm, forgetting in ((False, 0.0), (True, 0.0), (False, 0.5)):
        state = start
        for number in range(1, 4):
            reading = Reading(forgetting, OFFSET, number / 100, number / 100, warm)
            state, decided = decide_replay(SETTINGS, state, reading, bounds)
        assert (decided.parts > 256) == (forgetting > 0)
        assert (decided.parts < 256) == (warm and forgetting == 0)


readings = st.builds(
    Reading,
    forgetting=st.floats(-3, 3),
    spread=st.floats(0, 0.1),
    clock=st.floats(0, 1),
    progress=st.floats(0, 1),
    warm=st.booleans(),
)


@given(
    budget=st.floats(1e-4, 1),
    gain=st.floats(0.1, 3),
    bounds=st.tuples(st.integers(2, 1022), st.integers(2, 1022)).map(lambda two: Bounds(min(two), max(two))),
    taken=st.lists(readings, max_size=12),
)
def test_any_readings_give_a_ratio_within_bounds_by_small_steps(budget, gain, bounds, taken):
    settings = ControlSettings(budget, gain)
    state = ControlState.starting_at(
        Fraction(bounds.lowest + bounds.highest, 2 * PARTS), budget, at_base=False
    )
    for reading in sorted(taken, key=lambda one: one.clock):
        before = state.logit
        state, decided = decide_replay(settings, state, reading, bounds)
        assert bounds.lowest <= decided.parts <= bounds.highest
        assert decided.ratio.denominator in {2**k for k in range(11)}
        assert -FALL - 1e-9 <= state.logit - before <= RISE + 1e-9
        assert math.isfinite(decided.ahead)
        assert budget / 4 <= decided.target <= budget
        again = ControlState.from_json(json.loads(json.dumps(state.to_json())))
        assert again == state


def test_a_reading_is_rounded_so_that_another_order_of_sums_gives_the_same():
    assert round_reading(0.0123456) == round_reading(0.0123456 + 1e-7)
    assert abs(round_reading(0.0123456) - 0.0123456) < 1e-4


def test_a_phase_that_begins_with_forgetting_takes_it_as_no_trend():
    reading, bounds = Reading(0.015, OFFSET, 0.01, 0.01), Bounds(LOWEST, HIGHEST)
    found = [
        decide_replay(
            SETTINGS, ControlState.starting_at(Fraction(1, 4), BUDGET, at_base=at_base), reading, bounds
        )
        for at_base in (True, False)
    ]
    (_, risen), (_, known) = found
    assert risen.ahead > 3 * known.ahead  # from the base it has come within a hundredth of the phase
    assert abs(known.ahead - 0.015) < 0.003
