"""Decisions about the replay in the state of a run: what they do to the LR, and to a start."""

import json
from dataclasses import replace

import pytest

from tests.helpers.scheduler_runs import begun, data, phase, recipe, trained
from trainer.scheduler.decide import decide
from trainer.scheduler.state import RunState

BUDGET = "{{forgetting_budget: {}, on_failure: {}, zh: 1, en: 1}}"


def run_of(budget=0.02, on_failure="stop"):
    mixture = BUDGET.format(budget, on_failure)
    return recipe(phase("one", mixture=mixture), edits=["validation.upstream=en"])


def decided(action, phase=0, budget=0.02):
    return {
        "phase": phase,
        "budget": budget,
        "action": action,
        "held": action is None,
        "bounds": [2, 614],
        "of": 1024,
        "state": {"forgetting": 0.0345},
    }


def test_a_budget_that_cannot_be_held_is_refused_until_the_recipe_says_what_to_do():
    run = run_of()
    state = replace(trained(begun(run), 20), decisions=(decided(None), decided("stop")))
    refused = decide(run, data(run), state)
    assert refused.kind == "refuse"
    assert "0.02 bits per byte, cannot be held: forgetting is 0.0345" in refused.render()
    for allowed in (run_of(budget=0.04), run_of(on_failure="lower_lr")):
        assert decide(allowed, data(allowed), state).kind == "restore"


def test_a_lowered_lr_is_halved_each_time_and_only_in_its_phase():
    run = run_of(on_failure="lower_lr")
    state = trained(begun(run), 20)
    plain = state.next_lr
    for actions, factor in (([None], 1), (["lower_lr"], 0.5), (["lower_lr", None, "lower_lr"], 0.25)):
        lowered = replace(state, decisions=tuple(map(decided, actions)))
        assert lowered.next_lr == plain * factor
        assert RunState.from_json(json.loads(json.dumps(lowered.to_json()))) == lowered
    assert replace(state, decisions=(decided("lower_lr", phase=3),)).next_lr == plain


def test_a_run_without_decisions_is_written_as_it_always_was():
    state = begun(run_of())
    assert not {"decisions", "measured"} & set(state.to_json())
    assert {"decisions", "measured"} & set(replace(state, decisions=(decided(None),)).to_json())


@pytest.mark.parametrize("field", ["decide_every", "start"])
def test_what_decides_past_samples_may_not_be_edited(field):
    run = run_of()
    state = trained(begun(run), 20)
    assert decide(run, data(run), state).kind == "restore"
    other = [
        replace(one, decide_every=77)
        if field == "decide_every"
        else replace(one, segments=(replace(one.segments[0], weights={"zh": "1"}),))
        for one in data(run)
    ]
    refused = decide(run, other, state)
    assert refused.kind == "refuse"
    assert "its data was edited" in refused.render()
