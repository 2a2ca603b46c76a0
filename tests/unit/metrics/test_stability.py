"""Skipped steps are tolerated up to a limit; spikes stand out from noise."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.errors import UserError
from trainer.metrics.stability import AT_LEAST, NonFinite, Spikes, robust_z


def test_skipped_steps_are_borne_until_too_many_come_in_a_row():
    watch = NonFinite(limit=3)
    for step, applied in enumerate([False, False, True, False, False]):
        watch.update(step, applied)
    assert watch.in_a_row == 2
    with pytest.raises(UserError, match=r"step 5: .*3 steps in a row.*lower max_lr"):
        watch.update(5, applied=False)


def test_robust_z_against_values_written_by_hand():
    history = [1.0, 2.0, 3.0, 4.0, 100.0]  # median 3; deviations 2 1 0 1 97, their median 1
    assert robust_z(history, 3.0) == 0
    assert robust_z(history, 3.0 + 1.4826) == pytest.approx(1)
    assert robust_z(history, 0.0) == pytest.approx(-3 / 1.4826)
    assert robust_z([2.0] * 9, 2.002) == pytest.approx(1)  # flat: 0.1 % of 2 is one deviation
    assert robust_z(history, math.nan) == math.inf


@given(
    st.lists(st.floats(-100, 100), min_size=5, max_size=50),
    st.floats(-100, 100),
    st.floats(-100, 100),
)
def test_robust_z_rises_with_the_value(history, first, second):
    low, high = sorted([first, second])
    assert robust_z(history, low) <= robust_z(history, high)


def test_a_spike_stands_out_from_noise_and_from_a_falling_loss():
    noise = random.Random(0)
    spikes = Spikes()
    for step in range(600):
        assert spikes.update(4 * math.exp(-step / 200) + 2 + noise.gauss(0, 0.05)) is None, step
    assert spikes.update(4.0) > 8
    assert spikes.update(math.nan) == math.inf
    assert spikes.update(2.25) is None


def test_no_spike_is_seen_before_there_is_a_history():
    spikes = Spikes()
    losses = [1.0, 50.0, 1.0, 1.0] * (AT_LEAST // 4)
    for loss in losses:
        assert spikes.limit == math.inf
        assert spikes.update(loss) is None
    assert spikes.update(1e6) is not None
