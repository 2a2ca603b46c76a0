"""Phases, cycles and decays of one, two or three steps: each trains, and what no step sees is told."""

import json

import pytest

from tests.helpers.scheduler_runs import STEP, data, phase, recipe
from trainer.recipe.load import dump_recipe, parse_recipe
from trainer.scheduler.curves import Curve
from trainer.scheduler.decide import decide
from trainer.scheduler.state import BaseLineage

KINDS = {
    "cosine": {},
    "cosine_clamped": {},
    "linear": {},
    "inverse_sqrt": {},
    "constant": {},
    "wsd": {},
    "infinite": {},
    "stages": {"stages": [{"shape": "linear", "length": "99%", "end_lr": 1e-4}]},
}


def rates(run):
    """The learning rates of all steps of the first phase."""
    first = run.phases[0]
    return [Curve(first.schedule, first.tokens)(start) for start in range(0, first.length, STEP)]


def warnings(run):
    return [found.name for found in decide(run, data(run), None, BaseLineage("base", lr=3e-5)).warnings]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cycles", [1, 2])
@pytest.mark.parametrize("tokens", [1, 50, 100, 150, 200, 300, 700])
def test_a_phase_trains_at_a_positive_lr_however_short_it_is(kind, cycles, tokens):
    """What is longer than a step begins at 0, as the papers' warm-up does."""
    schedule = json.dumps({"kind": kind, "max_lr": 1e-3, "cycles": cycles, **KINDS[kind]})
    run = recipe(phase("x", schedule, tokens=tokens))
    found = rates(run)
    single = tokens // cycles <= STEP
    assert (found[0] > 0) == single
    assert max(found) > 0
    assert parse_recipe(dump_recipe(run)) == run  # the recipe that the run directory keeps
    assert ("phase_of_one_step" in warnings(run)) == single


@pytest.mark.parametrize("start_lr", [1e-5, 1e-3])
def test_a_single_step_keeps_the_lr_that_the_recipe_gives_it(start_lr):
    run = recipe(phase("x", f"{{kind: cosine, max_lr: 1e-3, start_lr: {start_lr}}}", tokens=STEP))
    assert rates(run) == [start_lr]


def test_a_single_step_without_a_warm_up_is_as_it_was():
    run = recipe(phase("x", "{kind: cosine, max_lr: 1e-5, warmup: 0}", tokens=STEP))
    assert rates(run) == [1e-5]
    assert "phase_of_one_step" not in warnings(run)


def anneal(tokens, end_lr=1e-6, begin=5 * STEP):
    return (
        "{kind: constant, max_lr: 1e-5, warmup: 0, "
        f"anneal: {{from_tokens: {begin}, tokens: {tokens}, end_lr: {end_lr}}}}}"
    )


@pytest.mark.parametrize(
    ("schedule", "tokens", "falls"),
    [
        (anneal(STEP), 1000, False),  # its only step has the LR of its start
        (anneal(STEP // 2), 1000, False),
        (anneal(2 * STEP), 1000, True),
        (anneal(STEP, begin=5 * STEP + STEP // 2), 1000, True),  # a step begins in its middle
        ("{kind: wsd, max_lr: 1e-5, warmup: 0}", 4 * STEP, False),  # a decay of 10 %: less than a step
        ("{kind: wsd, max_lr: 1e-5, warmup: 0}", 10 * STEP, False),
        ("{kind: wsd, max_lr: 1e-5, warmup: 0}", 20 * STEP, True),
        (anneal(STEP, end_lr=1e-5), 1000, None),  # it was not to fall
    ],
)
def test_a_decay_that_no_step_sees_is_told(schedule, tokens, falls):
    run = recipe(phase("x", schedule, tokens=tokens))
    assert (min(rates(run)) < 1e-5) == bool(falls)
    assert ("decay_of_one_step" in warnings(run)) == (falls is False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_longer_than_its_phase_is_refused(kind):
    schedule = json.dumps({"kind": kind, "max_lr": 1e-3, "warmup": 3 * STEP, **KINDS[kind]})
    with pytest.raises(Exception, match=r"warmup 300 .*do not fit into the phase's 200"):
        recipe(phase("x", schedule, tokens=2 * STEP))
