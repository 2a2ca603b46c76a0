"""A run notices its bad steps, and a resumed one judges as the undisturbed one does."""

import json
import math
import random

import pytest

from tokenization.errors import UserError
from trainer.engine.skipping import NO_LIMITS
from trainer.recipe.health import Health
from trainer.run.health import Vitals


def vitals(saved=None, **rules):
    return Vitals(Health.model_validate(rules), saved or {}, lambda: "last good checkpoint: step 7")


def after(steps, **rules):
    """Judges so many healthy steps."""
    one, noise = vitals(**rules), random.Random(3)
    for step in range(steps):
        assert one.judge(step, 2 + noise.gauss(0, 0.05), 1 + noise.gauss(0, 0.1), True) == []
    return one


def test_a_skipped_step_is_said_and_too_many_end_the_run(log_lines):
    one = vitals(max_skipped=3)
    one.judge(1, 2.0, math.inf, applied=False)
    assert log_lines == ["step 1: skipped: non-finite gradients; weights and LR schedule unchanged"]
    one.pass_over(2)
    with pytest.raises(UserError, match=r"step 3: 3 steps in a row .*last good checkpoint: step 7"):
        one.judge(3, 2.0, math.inf, applied=False)
    one.judge(4, 2.0, 1.0, applied=True)
    one.judge(5, 2.0, math.inf, applied=False)


def test_a_spike_is_said(log_lines):
    one = after(40)
    assert one.judge(41, 10.0, 1.0, applied=True) == []
    (line,) = log_lines
    assert line.startswith("step 41: loss spike: loss/train is ")
    assert line.endswith("standard deviations above the recent median")


def test_what_is_not_finite_was_skipped_and_calls_for_nothing_more(log_lines):
    one = after(40, loss_spike={"action": "roll_back"}, grad_norm_spike={"action": "roll_back"})
    assert one.judge(41, math.nan, math.inf, applied=False) == []
    assert len(log_lines) == 1


def test_a_limit_is_set_where_spikes_are_skipped_and_known_before_the_step():
    assert after(40).limits == NO_LIMITS
    one = after(40, loss_spike={"action": "skip_update"}, grad_norm_spike={"action": "skip_update"})
    assert 2 < one.limits.loss < 3
    assert 1 < one.limits.grad_norm < 3
    assert after(31, loss_spike={"action": "skip_update"}).limits == NO_LIMITS


def test_a_spike_that_is_rolled_back_names_what_rose():
    one = after(40, loss_spike={"threshold": 6, "action": "roll_back"})
    ((metric, what),) = one.judge(41, 9.0, 50.0, applied=True)
    assert (metric, what.split(":")[0]) == ("loss/train", "loss spike")


def test_a_resumed_run_judges_alike():
    rules = {"loss_spike": {"action": "skip_update"}, "max_skipped": 3}
    whole = after(50, **rules)
    whole.judge(51, 2.0, math.inf, applied=False)
    resumed = vitals(json.loads(json.dumps(whole.to_json())), **rules)
    assert resumed.limits == whole.limits
    for one in (whole, resumed):
        one.judge(52, 2.0, math.inf, applied=False)
        with pytest.raises(UserError, match="3 steps in a row"):
            one.judge(53, 2.0, math.inf, applied=False)
