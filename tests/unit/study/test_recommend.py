"""What a study recommends: the planted answer where there is one, and a refusal where there is none."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from trainer.study.observed import Knobs, StudiedArm, fit_all, fit_forgetting
from trainer.study.recommend import measured_gain, recommend
from trainer.study.results import Arm, ScoreCurve

TOKENS, WEIGHTS = 1e8, 4e7


@pytest.fixture(autouse=True)
def fewer_fits(monkeypatch):
    """The bootstrap takes most of the time, and its quantiles are known well enough from fewer fits."""
    monkeypatch.setattr("trainer.study.recommend.fit_forgetting", partial(fit_forgetting, bootstraps=60))


SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5)


def forgotten(replay, tokens, weights):
    """What was planted, in bits per byte."""
    return 0.8 * (tokens / TOKENS) ** 0.5 / ((1 + 400 * replay) * weights / WEIGHTS) ** 0.7


def arm(replay=0.0, max_lr=3e-4, warmup=0.01, seed=0, tokens=TOKENS, weights=WEIGHTS, **changes):
    """An arm that forgot as planted, more with a larger max_lr, and learnt a little less with replay."""
    noise, worse = changes.get("noise", 0.001), changes.get("worse", 0.0)
    random = np.random.default_rng([seed, int(replay * 1000), int(max_lr * 1e7), int(tokens), int(weights)])
    when = tokens * np.array([0.25, 0.5, 0.75, 1.0])
    up = 1.0 + max_lr / 3e-4 * forgotten(replay, when, weights) + random.normal(0, noise, 4)
    down = 2.0 - 0.5 * (when / TOKENS) ** 0.3 + 0.1 * replay + worse + random.normal(0, noise, 4)
    curves = (
        ScoreCurve((0, *when.astype(int).tolist()), (base, *ends.tolist()), (base, *ends.tolist()))
        for base, ends in ((1.0, up), (2.0, down))
    )
    found = Arm(
        "x", seed, "", {}, int(weights), int(tokens), replay, *curves, finished=True, diverged=False,
        from_scratch=False, directory=Path(f"replay-{replay:g}-{max_lr:g}-{warmup:g}-{seed}"),
    )  # fmt: skip
    return StudiedArm(found, Knobs(replay, max_lr, warmup, "cosine"), Path("study"))


def study(**changes):
    return [arm(share, **changes) for share in SHARES]


def needed(target, tokens=TOKENS, weights=WEIGHTS):
    """The share of replay that the planted law wants."""
    shares = np.linspace(0, 1, 100_001)
    return shares[np.flatnonzero(forgotten(shares, tokens, weights) <= target)[0]]


def test_the_replay_is_the_planted_one():
    found = recommend(study(), 0.03)
    replay = found.of("replay")
    assert replay.value == pytest.approx(needed(0.03), rel=0.1)
    assert "measured forgetting: at 25.0% +0.0" in replay.lines[0]
    assert "second half of the tokens predicted within" in "".join(replay.lines)
    assert len(replay.arms) == len(SHARES)
    assert not found.refused
    assert any(note.startswith("one seed") for note in found.notes)
    assert not any("extrapolated" in note for note in found.notes)


def test_the_interval_of_the_replay_holds_the_planted_one_about_as_often_as_it_says():
    found = [recommend(study(seed=seed), 0.04).of("replay").interval for seed in range(8)]
    assert sum(low <= needed(0.04) <= high for low, high in found) >= 6
    assert all(high < 1.5 * low for low, high in found)


def test_what_is_measured_is_that_of_the_largest_model():
    """Means over sizes were printed as what was measured."""
    told = recommend(study(weights=2e7) + study(), 0.03).of("replay").lines[0]
    printed = {float(share) / 100: float(bits) for share, bits in re.findall(r"([\d.]+)% \+([\d.]+)", told)}
    assert printed == pytest.approx({s: forgotten(s, TOKENS, WEIGHTS) for s in (0.25, 0.5)}, abs=0.004)
    refused = recommend(study(weights=2e7) + study(), 0.001).of("replay").lines[0]
    least = float(re.search(r"the least was ([\d.]+)", refused)[1])
    assert least == pytest.approx(forgotten(0.5, TOKENS, WEIGHTS), abs=0.004)


def test_an_extrapolation_is_stated_and_predicted():
    small, large = study(weights=2e7, tokens=5e7), study()
    found = recommend(small + large, 0.06, tokens=4e8, weights=1.2e8)
    assert found.of("replay").value == pytest.approx(needed(0.06, 4e8, 1.2e8), rel=0.15)
    assert "extrapolated to 4.0 times the tokens of the largest arm" in found.notes
    assert "extrapolated to 3.0 times the weights of the largest arm" in found.notes
    assert any("no law carries them further" in note for note in found.notes)


@pytest.mark.parametrize(
    ("tokens", "weights", "said"),
    [
        (1.1e9, WEIGHTS, "the run has 11 times the tokens of the largest arm, which is beyond 10 times"),
        (TOKENS, 7e9, "the run has 175 times the weights of the largest arm"),
        (20e9, 7e9, "the arm that would help most: 2,000,000,000 tokens, 700,000,000 weights, replay 50.0%"),
    ],
)
def test_beyond_ten_times_no_number_is_named_and_the_arm_that_helps_is(tokens, weights, said):
    found = recommend(study(), 0.001, tokens, weights)
    assert found.refused
    assert said in found.to_text()
    assert found.to_text().startswith("no number is named: ")
    assert all(one.value is None for one in found.advice)


def test_another_size_from_arms_of_one_size_is_refused():
    found = recommend(study(), 0.05, weights=1.2e8)
    assert found.refused
    assert "all arms have 40,000,000 weights, so that nothing tells what size does" in found.to_text()


def test_a_target_that_no_arm_kept_is_refused():
    replay = recommend(study(), 0.001).of("replay")
    assert replay.value is None
    assert "no share up to 50% kept forgetting at 0.001; the least was 0.01" in replay.lines[0]
    far = recommend(study(), 0.03, tokens=9e8).of("replay")
    assert far.value is None
    assert (
        "of the fits no share up to 50%, the largest that was tried, keeps forgetting at 0.03" in far.lines[0]
    )


def test_a_law_that_foresaw_no_better_than_none_is_not_used():
    """Upstream stands still from the middle on, which no law foresees."""
    broken = []
    for one in study():
        base, quarter, half, *_ = one.arm.upstream.bits_per_byte
        curve = replace(one.arm.upstream, bits_per_byte=(base, quarter, half, half, half))
        broken.append(replace(one, arm=replace(one.arm, upstream=curve)))
    here = recommend(broken, 0.03).of("replay")
    assert "the law of forgetting is not used: it predicted the second half of the tokens" in here.lines[-1]
    assert (here.value, here.interval) == (0.25, (0.1, 0.25)), "the arms alone: the least that kept it"
    far = recommend(broken, 0.03, tokens=2 * TOKENS).of("replay")
    assert far.value is None
    assert "nothing is extrapolated" in far.lines[-1]


def test_too_few_shares_and_no_arms_are_refused():
    few = recommend([arm(0.0), arm(0.1)], 0.02).of("replay")
    assert few.value is None
    assert "the arms have 2 share(s) of replay, and 3 are needed" in few.lines[0]
    none = recommend([], 0.02)
    assert none.refused
    assert "no arm has ended" in none.to_text()


def test_a_target_that_every_arm_kept_needs_no_replay():
    replay = recommend(study(), 2.0).of("replay")
    assert (replay.value, replay.interval) == (0.0, (0.0, 0.0))


def test_arms_that_contradict_the_law_bound_it():
    """At 10 % the arm still forgot a lot, whatever a smooth curve says."""
    odd = [arm(share) if share != 0.1 else arm(0.1, max_lr=3e-4 * 20) for share in SHARES]
    odd = [replace(one, knobs=replace(one.knobs, max_lr=3e-4)) for one in odd]
    replay = recommend(odd, 0.1).of("replay")
    assert 0.1 <= replay.interval[0] <= replay.value <= 0.25


def test_max_lr_is_the_one_that_learnt_most_among_those_that_kept_the_target():
    rates = {1.5e-4: 0.1, 3e-4: 0.0, 6e-4: -0.1}
    arms = [arm(0.25, lr, seed=seed, worse=worse) for lr, worse in rates.items() for seed in range(3)]
    found = recommend(arms, 0.05).of("max_lr")
    assert (found.value, found.interval) == (3e-4, (3e-4, 3e-4))
    assert "0.0006: downstream 1.42" in "".join(found.lines)
    assert recommend(arms, 0.2).of("max_lr").value == 6e-4
    nothing = recommend(arms, 0.001).of("max_lr")
    assert "none kept the target at 25.0% replay" in nothing.lines[-1]


def test_values_that_seeds_do_not_tell_apart_are_an_interval_and_one_seed_tells_nothing():
    lengths = (0.0, 0.005, 0.01, 0.02)
    drawn = {
        (w, seed): arm(0.25, warmup=w, seed=4 * seed + place, noise=0.004)
        for place, w in enumerate(lengths)
        for seed in range(4)
    }
    arms = [replace(one, arm=replace(one.arm, seed=seed)) for (_, seed), one in drawn.items()]
    found = recommend(arms, 0.5).of("warmup")
    assert found.interval[1] - found.interval[0] >= 0.005
    one = recommend([arm(0.25, warmup=w, worse=w) for w in lengths], 0.5).of("warmup")
    assert one.interval == (one.value, one.value)
    assert "one seed: which others do as well is not known" in one.lines


def test_what_did_not_vary_is_said():
    found = recommend(study(), 0.05).of("max_lr")
    assert found.value == 3e-4
    assert "it did not vary: 0.0003 is what the arms had; run `rewarm study max_lr`" in found.lines[0]


def test_the_gain_is_the_slope_that_was_planted():
    held = []
    for one in study()[1:]:
        end = 1.0 + 0.05 * (one.knobs.replay / (1 - one.knobs.replay)) ** -0.6
        curve = ScoreCurve((0, int(TOKENS)), (1.0, end), (1.0, end))
        held.append(replace(one, arm=replace(one.arm, upstream=curve)))
    assert measured_gain(held) == pytest.approx(0.6)
    assert measured_gain([arm(0.0), arm(0.1)]) is None


def test_every_law_that_the_arms_allow_is_fitted():
    found = fit_all(study() + study(tokens=5e7), bootstraps=10)
    assert [(one.fit.law.name, one.stream) for one in found] == [
        ("forgetting", "upstream"), ("D-CPT", "upstream"), ("D-CPT", "downstream"),
    ]  # fmt: skip
    assert {test.held_out for test in found[0].tests} == {
        "the longest budget",
        "the second half of the tokens",
    }
    told = found[0].to_text()
    assert "back-test, the longest budget: mean relative error" in told
    assert "held: what it stands for did not vary" in found[1].to_text()
    assert math.isfinite(found[0].to_json()["back_tests"][0]["error"])
