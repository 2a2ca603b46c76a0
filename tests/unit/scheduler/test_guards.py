"""The warnings from the papers: when they are given, when not, which number they carry."""

import pytest

from tests.helpers.scheduler_runs import CONSTANT, COSINE, LOW, WSD, begun, data, phase, recipe, trained
from trainer.scheduler.decide import decide
from trainer.scheduler.guards import GUARDS, published_peak
from trainer.scheduler.state import BaseLineage

OTHER = BaseLineage("base", lr=3e-5, peak=3e-4, seen={"pile": 10**9})
"""A base of our own, trained on other data with a peak of 3e-4 down to 3e-5."""
HIGH = "{kind: cosine, max_lr: 6e-4}"
SUDDEN = "{kind: cosine, max_lr: 3e-4, warmup: 0}"
WAVES = "{kind: stages, max_lr: 1e-4, stages: [{shape: linear, length: 50%, end_lr: 1e-5}, " + (
    "{shape: linear, length: 49%, end_lr: 5e-5}]}"
)

CASES = [
    # (case, phases, base, the names of the warnings)
    ("the seed's own advice", (phase("x"),), OTHER, []),
    ("above the base's peak", (phase("x", HIGH),), OTHER, ["max_lr_above_base_peak"]),
    ("at the base's peak", (phase("x", "{kind: cosine, max_lr: 3e-4}"),), OTHER, []),
    ("new rows alone may learn fast", (phase("x", HIGH, train="new_rows"),), OTHER, []),
    ("no replay", (phase("x", mixture="{zh: 1}"),), OTHER, ["no_replay"]),
    ("1 % of replay", (phase("x", mixture="{zh: 99%, en: 1%}"),), OTHER, []),
    ("new rows forget nothing", (phase("x", mixture="{zh: 1}", train="new_rows"),), OTHER, []),
    ("no warm-up, short, large", (phase("x", SUDDEN),), OTHER, ["short_budget_without_warmup"]),
    ("no warm-up at the reached LR", (phase("x", LOW),), OTHER, []),
    (
        "no warm-up at a reached LR that is high",
        (phase("x", "{kind: constant, max_lr: 3e-4, warmup: 0}"),),
        BaseLineage("base", lr=3e-4),
        [],
    ),
    ("a schedule that holds before it falls", (phase("x", WSD),), OTHER, []),
    ("no warm-up, 100B tokens", (phase("x", SUDDEN, tokens="100e9"),), OTHER, []),
    (
        "no warm-up, one token less",
        (phase("x", SUDDEN, tokens=99_999_999_999),),
        OTHER,
        ["short_budget_without_warmup"],
    ),
    ("cycles", (phase("x", "{kind: cosine, max_lr: 3e-4, cycles: 3}"),), OTHER, ["rewarm_within_phase"]),
    (
        "cycles that begin at their top",
        (phase("x", "{kind: cosine, max_lr: 3e-5, warmup: 0, cycles: 3}"),),
        OTHER,
        ["rewarm_within_phase"],
    ),
    (
        "an anneal that leaves in the middle",
        (phase("x", "{kind: cosine, max_lr: 3e-5, anneal: {from_tokens: 5000, tokens: 1000, end_lr: 0}}"),),
        OTHER,
        [],
    ),
    ("a rising stage", (phase("x", WAVES),), OTHER, ["rewarm_within_phase"]),
    (
        "a few of the base's tokens under role new",
        (phase("x", mixture="{law: 30%, zh: 70%}"),),
        BaseLineage("base", lr=3e-5, seen={"law": 10**9}),
        ["base_samples_again", "rewarm_on_same_data"],
    ),
    (
        "the same, declared as replay",
        (phase("x", mixture="{en: 30%, zh: 70%}"),),
        BaseLineage("base", lr=3e-5, seen={"en": 10**9}),
        [],
    ),
    (
        "the base's data once more, with no re-warm",
        (phase("x", LOW),),
        BaseLineage("base", lr=3e-5, seen={"zh": 5_000, "en": 5_000}),
        ["base_samples_again"],
    ),
    (
        "several at once, in a later phase",
        (phase("one"), phase("two", SUDDEN.replace("3e-4", "6e-4"), mixture="{law: 1}")),
        OTHER,
        ["max_lr_above_base_peak", "no_replay", "short_budget_without_warmup"],
    ),
    (
        "an extension on 10k tokens",
        (phase("x"),),
        BaseLineage("b", new_rows=23_296),
        ["small_budget_for_vocabulary"],
    ),
    (
        "an extension, told once",
        (phase("x"), phase("y", LOW)),
        BaseLineage("b", new_rows=23_296),
        ["small_budget_for_vocabulary"],
    ),
    ("an extension on 2B tokens", (phase("x", tokens="2e9"),), BaseLineage("b", new_rows=23_296), []),
]


@pytest.mark.parametrize(
    ("phases", "base", "names"), [row[1:] for row in CASES], ids=[row[0] for row in CASES]
)
def test_warnings(phases, base, names):
    run = recipe(*phases)
    decision = decide(run, data(run), None, base)
    assert decision.kind == "start", decision.render()
    assert [warning.name for warning in decision.warnings] == names
    for name in names:
        assert name in GUARDS
        assert f"(silence it with allow: [{name}])" in decision.render()
    quiet = recipe(*phases, allow=f"[{', '.join(names)}]")
    assert decide(quiet, data(quiet), None, base).warnings == ()


@pytest.mark.parametrize(
    ("phases", "base", "numbers"),
    [
        ((phase("x", HIGH),), OTHER, ("0.0006", "0.0003", "2.42, 2.43, 2.44, 2.48")),
        ((phase("x", mixture="{zh: 1}"),), OTHER, ("3.56", "2.33", "2.17", "2403.08763")),
        (
            (phase("x", LOW), phase("y", LOW)),
            BaseLineage("b", lr=3e-5, seen={"zh": 5_000, "en": 5_000}),
            ("up to 500 of its 500 samples of zh are repeated",),  # 1,500 are asked for
        ),
        (
            (phase("x", LOW),),
            BaseLineage("b", lr=3e-5, seen={"zh": 20_000}),
            ("up to 750 of its 2,000 samples of zh are repeated",),
        ),
        (
            (phase("x", SUDDEN),),
            OTHER,
            ("10,000 tokens", "constant 3e-5 led for the first 100B", "2308.04014"),
        ),
        ((phase("x"),), BaseLineage("b", new_rows=7), ("7 new", "10,000 tokens", "30B", "2B", "2401.01055")),
        (
            (phase("x", "{kind: cosine, max_lr: 3e-4, cycles: 2}"),),
            OTHER,
            ("5,000 tokens", "50B further tokens"),
        ),
    ],
)
def test_a_warning_carries_its_numbers(phases, base, numbers):
    run = recipe(*phases)
    [warning] = decide(run, data(run), None, base).warnings
    for number in numbers:
        assert number in warning.text


def test_random_weights_have_nothing_to_forget():
    run = recipe(
        phase("x", SUDDEN, mixture="{zh: 1}"), edits=["model.base=null", "model.init={hidden_size: 8}"]
    )
    assert decide(run, data(run), None).warnings == ()


def test_a_well_known_base_has_a_published_peak():
    run = recipe(phase("x"), edits=["model.base=meta-llama/Llama-2-70b-hf"])
    decision = decide(run, data(run), None)
    assert [warning.name for warning in decision.warnings] == ["max_lr_above_base_peak"]
    assert decision.state.peak_before == 1.5e-4


@pytest.mark.parametrize(
    ("base", "peak"),
    [
        ("models/llama-2-7b-zh", 3e-4),
        ("models/llama2-7b-zh", 3e-4),
        ("models/Llama_2_13B", 3e-4),
        ("models/llama2-70b", 1.5e-4),
        ("EleutherAI/pythia-410m", 3e-4),
        ("models/llama-2/7b", None),
        ("models/else", None),
        (None, None),
    ],
)
def test_a_published_peak_is_found_however_the_name_is_joined(base, peak):
    assert published_peak(base) == peak


def test_phases_that_have_begun_are_not_warned_of_again():
    run = recipe(phase("one", HIGH, mixture="{zh: 1}"), phase("two", COSINE, mixture="{law: 1}"))
    names = [warning.name for warning in decide(run, data(run), None, OTHER).warnings]
    assert names == ["max_lr_above_base_peak", "no_replay", "no_replay"]
    later = decide(run, data(run), trained(begun(run, OTHER), 3))
    assert [(warning.name, "'two'" in warning.text) for warning in later.warnings] == [("no_replay", True)]


def test_the_peak_of_the_base_is_remembered_through_the_run():
    run = recipe(phase("one", LOW), phase("two", HIGH, mixture="{law: 3/4, en: 1/4}"))
    state = trained(begun(run, OTHER), 100)
    [warning] = decide(run, data(run), state).warnings
    assert warning.name == "max_lr_above_base_peak"
    assert BaseLineage.of(trained(begun(recipe(phase("x", CONSTANT)), OTHER), 3), "b").peak == 3e-4
