"""A wrong gradient is named by what made it wrong; what is within its limits is not."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.diagnosis import Apart, Finding, Trial

LIMITS = Apart(gradient=1e-2, moments=1e-2, losses=1e-3, norms=1e-2, weights=1e-2)
RIGHT = Finding(
    Trial(2, "bf16", 4, 8),
    Apart(**{name: value / 2 for name, value in vars(LIMITS).items()}),
    LIMITS,
    1.0,
    2e-3,
)


def scaled(factor, trial=RIGHT.trial):
    """Gradients of the right direction and another length."""
    return replace(RIGHT, trial=trial, factor=factor, apart=replace(RIGHT.apart, gradient=abs(factor - 1)))


def test_what_is_within_the_limits_is_right():
    assert RIGHT.ok
    assert RIGHT.reason == ""


@given(ranks=st.integers(2, 400))
def test_a_rank_that_is_left_out_is_found_on_any_number_of_ranks(ranks):
    finding = scaled((ranks - 1) / ranks, Trial(1, "bf16", 1, ranks))
    assert not finding.ok
    assert f"one of {ranks} ranks were left out" in finding.reason


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1 / 8, "divided by the 8 ranks once too often"),
        (8.0, "added over the 8 ranks and not averaged"),
        (3 / 4, "one of 4 micro batches were left out"),
        (4.0, "added over the 4 micro batches and not averaged"),
        (2.0**16, "the loss scale 65536 were left in them"),
        (2.0**-16, "divided by a loss scale of 65536"),
        (1.37, "gradients are 1.37 times plain PyTorch's"),
    ],
)
def test_the_factors_of_known_errors_are_named(factor, told):
    assert told in scaled(factor).reason
    assert ("as if" in scaled(factor).reason) == (factor != 1.37)


@pytest.mark.parametrize("name", vars(LIMITS))
@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_each_number_beyond_its_limit_is_named(name, value):
    finding = replace(RIGHT, apart=replace(RIGHT.apart, **{name: value}))
    assert not finding.ok
    assert f"{'the first gradient' if name == 'gradient' else name} differ" in finding.reason


def test_a_nan_factor_and_a_skipped_step_are_wrong():
    assert not replace(RIGHT, factor=math.nan).ok
    assert replace(RIGHT, skipped=1).reason == "1 step was skipped without a reason"


def test_a_finding_goes_through_json():
    for finding in (RIGHT, scaled(0.5)):
        tree = json.loads(json.dumps(finding.to_json()))
        assert Finding.from_json(tree) == finding
        assert tree["ok"] == finding.ok
