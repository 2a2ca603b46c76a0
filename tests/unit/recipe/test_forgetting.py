"""A mixture's forgetting budget and the averaged weights, as a recipe writes them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.mixer_recipes import recipe_of
from tokenization.errors import UserErrors
from trainer.recipe import load
from trainer.recipe.forgetting import Average

SOURCES = {"zh": "new", "en": "replay"}
UPSTREAM = {"validation": "{every_tokens: 1, upstream: en}"}


def recipe_with(mixture, **fields):
    return recipe_of(SOURCES, [mixture], samples=[1000], **{**UPSTREAM, **fields})


def test_a_budget_starts_at_half_replay_and_is_written_back_equal():
    recipe = recipe_with("forgetting_budget: 0.02, replay_min: 0.2%")
    (segment,) = recipe.phases[0].mixture
    assert segment.replay_ratio == Fraction(1, 2)
    assert (segment.replay_min, segment.replay_max) == (Fraction(1, 500), Fraction(3, 5))
    assert recipe.phases[0].steered is segment
    assert load.parse_recipe(load.dump_recipe(recipe)) == recipe
    plain = recipe_with("replay_ratio: 1%")
    assert plain.phases[0].steered is None
    assert load.parse_recipe(load.dump_recipe(plain)) == plain


@pytest.mark.parametrize(
    ("mixture", "fields", "told"),
    [
        ("replay_ratio: 2%, replay_min: 1%", {}, "replay_min has an effect only with a forgetting_budget"),
        ("forgetting_budget: 0.1, replay_min: 80%", {}, "must be in this order"),
        ("forgetting_budget: 0.1, replay_min: 0", {}, "between 2/1024 and 1022/1024"),
        ("forgetting_budget: 0.1, replay_ratio: 70%", {}, "is not between replay_min 1/512 and replay_max"),
        ("forgetting_budget: 0", {}, "must be greater than 0"),
        ("forgetting_budget: 0.1, on_failure: panic", {}, "must be 'stop', 'lower_lr' or 'pull_to_base'"),
        ("forgetting_budget: 0.1", {"validation": "{every_tokens: 1}"}, "needs validation.upstream"),
        (["forgetting_budget: 0.1", "from: 160, zh: 1"], {}, "with a forgetting_budget it has one segment"),
    ],
)
def test_what_does_not_fit_is_named(mixture, fields, told):
    with pytest.raises(UserErrors, match=told):
        recipe_with(mixture, **fields)


@given(st.integers(1, 40), st.integers(1, 300))
def test_a_window_counts_its_steps_evenly(window, steps):
    average, weights, mean = Average(kind="window", half_life=window * 7), [], 0.0
    for number in range(1, steps + 1):
        weights.append(float(number))
        mean += average.share_of_step(number * 7, 7) * (number - mean)
        if number % window == 0:
            assert mean == pytest.approx(sum(weights) / window)
            weights = []


def test_an_exponential_average_is_a_plain_mean_at_first_and_halves_what_is_older():
    average = Average(half_life=1000)
    mean = 5.0
    for number in range(1, 4):
        mean += average.share_of_step(number, 1) * (number - mean)
    assert mean == pytest.approx(2.0)  # what was there before the first step does not count
    kept = 1.0
    for number in range(10_000, 11_000):
        kept *= 1 - average.share_of_step(number, 1)
    assert kept == pytest.approx(0.5)
