"""Validation sets as a recipe names them, and what stands in where nothing is said."""

import pytest

from tests.helpers.scheduler_runs import STEP, phase, recipe
from tokenization.errors import UserErrors
from trainer.recipe.load import dump_recipe, parse_recipe
from trainer.recipe.validation import field_of

WIKI = "validation.sets={en-wiki: {path: data/wiki, role: upstream, weight: 1/2}}"


def test_sets_are_named_below_their_roles_beside_the_two_fields():
    run = recipe(edits=[WIKI, "validation.downstream=data/zh"])
    assert run.validation.paths == {"downstream": "data/zh", "upstream/en-wiki": "data/wiki"}
    assert [field_of(name) for name in run.validation.paths] == [
        "validation.downstream",
        "validation.sets.en-wiki",
    ]
    assert parse_recipe(dump_recipe(run)) == run


@pytest.mark.parametrize(
    ("edits", "line"),
    [
        (
            [WIKI, "validation.upstream=data/en"],
            "sets.en-wiki: weight 1/2 has no effect",
        ),
        ([WIKI.replace("en-wiki", "en/wiki")], "'en/wiki' is not a name for a set"),
        ([WIKI.replace("1/2", "0")], "validation.sets.en-wiki.weight"),
        ([WIKI.replace("upstream", "up")], "validation.sets.en-wiki.role"),
        ([WIKI.replace("weight", "weights")], "did you mean 'weight'"),
    ],
)
def test_what_is_wrong_with_a_set_is_one_line(edits, line):
    with pytest.raises(UserErrors) as found:
        recipe(edits=edits)
    assert len(found.value.problems) == 1
    assert line in str(found.value)


@pytest.mark.parametrize(
    ("edits", "line"),
    [
        (["validation.tasks={names: []}"], "validation.tasks.names"),
        (["validation.tasks={path: tasks}"], "validation.tasks.names"),
        (["validation.tasks={names: [a], limit: 0}"], "validation.tasks.limit"),
        (["validation.tasks={names: [a]}", "sequence_parallel_size=2"], "where ranks share samples"),
    ],
)
def test_tasks_that_cannot_be_asked_for_are_refused(edits, line):
    with pytest.raises(UserErrors) as found:
        recipe(edits=edits)
    assert line in str(found.value)


def test_tasks_are_answered_every_quarter_of_the_run_unless_it_says_otherwise():
    run = recipe(phase("one", tokens=100 * STEP), edits=["validation.tasks={names: [a]}"])
    assert run.tasks_every == 25 * STEP
    run = recipe(phase("one", tokens=100 * STEP), edits=["validation.tasks={names: [a], every_tokens: 5e3}"])
    assert run.tasks_every == 5000


def without(*sections, **fields):
    """A run of 100 steps whose recipe leaves these sections out."""
    text = dump_recipe(recipe(phase("one", tokens=100 * STEP), **fields))
    kept, skip = [], False
    for line in text.split("\n"):
        if line and not line.startswith((" ", "-")):
            skip = line.split(":")[0] in sections
        if not skip:
            kept.append(line)
    return parse_recipe("\n".join(kept))


def test_without_a_word_a_run_is_validated_and_saved_every_twentieth():
    run = without("validation", "checkpoint")
    assert (run.validate_every, run.save_every) == (5 * STEP, 5 * STEP)
    assert run.checkpoint.keep_last >= 2
    assert run.validation.paths == {}


@pytest.mark.parametrize(("stop", "every"), [(100 * STEP, 5 * STEP), (8 * STEP, 4 * STEP), (1, 1)])
def test_a_run_that_is_ended_early_is_saved_twice_all_the_same(stop, every):
    assert without("checkpoint", stop_after=stop).save_every == every


def test_what_the_recipe_says_holds():
    run = recipe(edits=["validation.every_tokens=7", "checkpoint.every_tokens=9"])
    assert (run.validate_every, run.save_every) == (7, 9)
