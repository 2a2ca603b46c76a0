"""Where a start goes on, and what a run has made of its base."""

import json

import pytest

from tests.helpers.scheduler_runs import CONSTANT, LAW, phase, recipe, saved_after
from trainer.plan.checks import validation_windows
from trainer.plan.past import changed_base, phase_now

LONG = (
    phase("one", CONSTANT),
    phase("two", CONSTANT, mixture=LAW, seq_len=50, rope="{rope_theta: 1e6}"),
)


@pytest.mark.parametrize(
    ("steps", "edits", "expected"),
    [
        (None, [], (0, False)),
        (0, [], (0, True)),
        (99, [], (0, True)),
        (100, [], (1, False)),  # its model is that of phase 0, until its first save
        (100, ["phases.0.tokens=20_000"], (0, True)),  # a longer budget: the phase is not over
        (101, [], (1, True)),
        (200, [], (1, True)),
    ],
)
def test_the_phase_that_a_start_trains_and_whether_its_model_is_saved(steps, edits, expected):
    state = None if steps is None else saved_after(recipe(*LONG), steps)
    assert phase_now(recipe(*LONG, edits=edits), state) == expected


def test_what_a_phase_has_made_of_the_model_is_not_told_as_a_change_of_the_base(tmp_path):
    before = {"vocab_size": 9, "rope_theta": 1e4, "max_position_embeddings": 10}
    after = {"vocab_size": 9, "rope_parameters": {"rope_theta": 1e6}, "max_position_embeddings": 50}
    (tmp_path / "config.json").write_text(json.dumps(before))
    run = recipe(*LONG, edits=[f"model.base={tmp_path}"])
    assert list(changed_base(run, after, saved_after(run, 101))) == []
    (line,) = changed_base(run, after, saved_after(run, 50))  # no phase has changed it: somebody has
    assert "max_position_embeddings 50 → 10" in line
    (tmp_path / "config.json").write_text(json.dumps({**before, "vocab_size": 8}))
    (line,) = changed_base(run, after, saved_after(run, 101))
    assert "vocab_size 9 → 8" in line
    assert "rope" not in line


def test_the_plan_says_in_which_windows_forgetting_is_measured():
    scored = "validation.upstream=data/en-val"
    assert list(validation_windows(recipe(LONG[0], edits=[scored]))) == []
    assert list(validation_windows(recipe(*LONG))) == []  # no text is scored
    (line,) = validation_windows(recipe(*LONG, edits=[scored]))
    assert (
        "every phase is scored in windows of seq_len 10, so that forgetting is measured on one scale" in line
    )
