"""Decided ratios in the mixture: the same samples from the recipe and the decisions, and never too many."""

import json
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.mixer_recipes import recipe_of, sizes_of
from tokenization.errors import UserError
from trainer.mixer.decisions import bounds_now, changes_of, line_of_record, make_record, read_decisions
from trainer.mixer.mixture import Mixture
from trainer.mixer.replay_control import Bounds, Reading
from trainer.mixer.segments import RatioChange, decision_samples

SOURCES = {"zh": "new", "en": "replay", "fr": "replay"}


def budgeted(sizes, samples, epochs=1, **options):
    fields = {"forgetting_budget": 0.02, "replay_ratio": "25%", "decide_every": "10%", **options}
    recipe = recipe_of(
        SOURCES,
        [", ".join(f"{name}: {value}" for name, value in fields.items())],
        samples=[samples],
        options=dict.fromkeys(SOURCES, f"max_epochs: {epochs}"),
        validation="{every_tokens: 1, upstream: en}",
    )
    return recipe, sizes_of(dict(zip(SOURCES, sizes, strict=True)))


def shares(mixture, start, stop):
    before, after = mixture.consumed(0, start), mixture.consumed(0, stop)
    return {name: after[name] - before[name] for name in mixture.names}


def test_a_decision_changes_the_samples_from_its_own_sample_on_and_none_before():
    recipe, sizes = budgeted((10**6, 10**5, 10**5), 10_000)
    plain = Mixture.from_recipe(recipe, sizes)
    decided = Mixture.from_recipe(
        recipe, sizes, changes=[RatioChange(0, 2000, 512), RatioChange(0, 3000, 512)]
    )
    assert len(decided.spans[0]) == 2  # one that leaves the ratio as it is begins no segment
    for column in ("source", "index", "epoch"):
        one, other = (getattr(each.samples(0, 0, 2000), column) for each in (plain, decided))
        assert np.array_equal(one, other)
    taken = shares(decided, 2000, 4000)
    assert abs(taken["en"] + taken["fr"] - 1000) <= 2
    assert abs(taken["en"] - taken["fr"]) <= 2
    assert decided.describe(0).decide_every == decision_samples(recipe, 0) == 1000
    assert [one.from_sample for one in decided.describe(0).segments] == [0, 2000]


def test_the_start_is_an_exact_part_of_1024():
    recipe, sizes = budgeted((10**6, 10**5, 10**5), 10_000, replay_ratio="10%")
    assert sum(Mixture.from_recipe(recipe, sizes).spans[0][0].weights[1:]) == Fraction(102, 1024)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(700, 2000), st.integers(150, 900), st.integers(150, 900)),
    readings=st.lists(st.floats(-0.1, 0.4), min_size=10, max_size=10),
)
def test_no_decision_outruns_a_source_and_a_replayed_log_gives_the_same_samples(sizes, readings):
    recipe, sizes = budgeted(sizes, 1000)
    segment, every, records = recipe.phases[0].mixture[0], 100, []
    mixture = Mixture.from_recipe(recipe, sizes)
    try:
        mixture.check_epochs()
    except UserError:
        return  # such a run does not begin
    for number, forgetting in enumerate(readings, start=1):
        applies_from = (number + 1) * every
        records.append(
            make_record(
                segment,
                records,
                "documents",
                phase=0,
                sample=number * every,
                every=every,
                reading=Reading(forgetting, 0.001, number / 10, number / 10),
                bounds=bounds_now(mixture, segment, 0, applies_from),
            )
        )
        mixture = Mixture.from_recipe(recipe, sizes, changes=changes_of(records))
        mixture.check_epochs()
    again = Mixture.from_recipe(recipe, sizes, changes=changes_of(json.loads(json.dumps(records))))
    assert np.array_equal(mixture.samples(0, 0, 1000).index, again.samples(0, 0, 1000).index)


def test_little_replay_text_bounds_the_ratio_and_little_new_text_does_too():
    recipe, sizes = budgeted((10_000, 200, 200), 1000)
    segment, mixture = recipe.phases[0].mixture[0], Mixture.from_recipe(recipe, sizes)
    bounds = bounds_now(mixture, segment, 0, 200)
    assert bounds.lowest == 2
    assert 0.40 < bounds.highest / 1024 <= 350 / 800  # 400 samples, of which 50 are used by then
    recipe, sizes = budgeted((800, 10_000, 10_000), 1000)
    bounds = bounds_now(Mixture.from_recipe(recipe, sizes), recipe.phases[0].mixture[0], 0, 200)
    assert 150 / 800 <= bounds.lowest / 1024 < 0.20
    assert bounds.highest == 614


def test_an_edited_log_is_refused(tmp_path):
    recipe, _ = budgeted((10**6, 10**5, 10**5), 1000)
    records = []
    for number in range(1, 4):
        reading, at = Reading(0.01 * number, 0.001, number / 10, number / 10), number * 100
        records.append(
            make_record(
                recipe.phases[0].mixture[0],
                records,
                "documents",
                phase=0,
                sample=at,
                every=100,
                reading=reading,
                bounds=Bounds(2, 614),
            )
        )
    file = tmp_path / "decisions.jsonl"
    file.write_text("".join(f"{line_of_record(one)}\n" for one in records))
    assert read_decisions(file) == json.loads(json.dumps(records))
    file.write_text("".join(f"{line_of_record(one)}\n" for one in (records[0], records[2])))
    with pytest.raises(UserError, match="line 2: does not belong to the line before it"):
        read_decisions(file)
    file.write_text("{}\n")
    with pytest.raises(UserError, match="is damaged"):
        read_decisions(file)


def test_the_learning_rate_is_halved_three_times_at_most():
    recipe, _ = budgeted((10**6, 10**5, 10**5), 10_000, decide_every="2%", on_failure="lower_lr")
    records = []
    for number in range(1, 50):
        records.append(
            make_record(
                recipe.phases[0].mixture[0],
                records,
                "documents",
                phase=0,
                sample=number * 200,
                every=200,
                reading=Reading(0.3, 0.001, number / 50, number / 50),
                bounds=Bounds(2, 614),
            )
        )
    unheld = [one for one in records if not one["held"]]
    assert [one["action"] for one in unheld[:3]] == ["lower_lr"] * 3
    assert len(unheld) > 3
    assert {one["action"] for one in unheld[3:]} == {None}
    gaps = [two["decision"] - one["decision"] for one, two in pairwise(unheld)]
    assert min(gaps) >= 5  # each time a tenth of the phase is waited for
