"""Verdicts on synthetic studies whose answer is known."""

import math

import numpy as np
import pytest

from tests.helpers.studies import arm
from trainer.study.claims import CLAIMS
from trainer.study.grids import STUDIES
from trainer.study.verdicts import compare_values, judge_claim, judge_study, verdict_lines

REPLAY = (0, 1, 5, 10, 25, 50)
NOISE = (0.000, 0.004, -0.003, 0.001)


def replay(seeds, forgotten, learnt, share_of_noise=1.0, **changes):
    """The study `replay`: all arms of a seed move together, and each has a little noise of its own."""
    found = []
    for seed in range(seeds):
        for place, share in enumerate(REPLAY):
            own = share_of_noise * NOISE[(seed + place) % 4]
            common = 0.2 * seed
            old, new = 2.0 + common + forgotten[place] + own, 2.0 + common + learnt[place] - own
            base = (2.0 + common, 3.0)
            found.append(
                arm(f"replay-{share}", seed, old, new, base=base, **changes.get(f"replay-{share}", {}))
            )
    return found


FORGOTTEN = (1.0, 0.4, 0.25, 0.2, 0.1, 0.02)
LEARNT = (0.0, 0.01, 0.02, 0.03, 0.07, 0.15)


def outcomes(study, arms):
    return {one.claim.name.split(",")[0]: one.outcome for one in judge_study(study, arms)}


def test_what_the_papers_found_holds_where_the_data_shows_it():
    found = judge_study("replay", replay(4, FORGOTTEN, LEARNT))
    assert [one.outcome for one in found] == ["holds", "holds", "holds"]
    assert found[0].seeds == (0, 1, 2, 3)
    assert found[0].reason == "every difference comes out so with 4 seeds"
    # seeds differ by 0.2 and differences between arms of one seed by 0.01: only pairs can decide this
    assert all(one.interval.spread < 0.02 for one in found[0].compared)


def test_the_opposite_does_not_hold_and_the_reason_names_it():
    (order, half, price) = judge_study("replay", replay(4, FORGOTTEN[::-1], LEARNT[::-1]))
    assert (order.outcome, half.outcome, price.outcome) == ("does not hold",) * 3
    assert "forgetting: replay-0 less replay-1 is -0.0" in order.reason


def test_one_pair_against_it_refutes_an_order():
    swapped = (1.0, 0.4, 0.2, 0.3, 0.1, 0.02)
    order = judge_study("replay", replay(4, swapped, LEARNT))[0]
    assert order.outcome == "does not hold"
    assert order.reason.count("less") == 1
    assert "replay-5 less replay-10" in order.reason


def test_one_seed_never_decides():
    for study in CLAIMS:
        for verdict in judge_study(study, replay(1, FORGOTTEN, LEARNT)):
            assert verdict.outcome == "not decided"
    one = judge_study("replay", replay(1, FORGOTTEN, LEARNT))[0]
    assert one.reason == "one seed shows no spread between seeds; at least 3 seeds are needed"


def test_equal_arms_are_alike_and_none_is_worse():
    same = replay(3, (0.3,) * 6, (0.1,) * 6, share_of_noise=0)
    assert set(outcomes("replay", same).values()) == {"does not hold"}
    shares = ("0", "0.5", "1", "2", "10")
    equal = [arm(f"warmup-{share}", seed, 2.5, 2.1) for share in shares for seed in range(3)]
    (verdict,) = judge_study("warmup", equal)
    assert verdict.outcome == "holds"
    assert "equal to the last digit" in verdict.reason
    assert verdict.reason.count("warmup-0 and warmup-1") == 1


def test_a_difference_of_over_one_per_cent_is_not_little():
    shares = {"0": 0.1, "0.5": 0.0, "1": 0.0, "2": 0.0, "10": 0.0}
    apart = [
        arm(f"warmup-{share}", seed, 2.5 + worse + NOISE[seed] / 10, 2.1)
        for share, worse in shares.items()
        for seed in range(3)
    ]
    (verdict,) = judge_study("warmup", apart)
    assert verdict.outcome == "does not hold"
    assert verdict.reason.startswith("upstream: warmup-0 less warmup-1 is +0.1")


def test_noise_is_not_decided_and_says_how_many_seeds_would_do():
    wide = (0.0, 0.06, -0.02)
    arms = [arm("replay-0", seed, 2.5, 2.0) for seed in range(3)]
    arms += [arm("replay-50", seed, 2.5, 2.02 + wide[seed]) for seed in range(3)]
    price = judge_claim(CLAIMS["replay"][2], arms)
    assert price.outcome == "not decided"
    # 0.02, 0.08, 0.00: mean 0.0333, deviation 0.0416; t(n - 1) * 0.0416 / sqrt(n) < 0.0333 from 9 on
    assert price.compared[0].needed == 9
    assert "up to 0.0416 bits per byte: about 9 seeds would decide it" in price.reason
    hopeless = [*arms[:3], *(arm("replay-50", seed, 2.5, 2.0 + 10 * (seed - 1)) for seed in range(3))]
    assert "50 seeds would not decide it" in judge_claim(CLAIMS["replay"][2], hopeless).reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"finished": False}, "the arm replay-1 has not finished"),
        ({"diverged": True}, "the arm replay-1 diverged (seed 0, 1, 2)"),
    ],
)
def test_an_arm_that_did_not_end_well_decides_nothing(change, why):
    arms = replay(3, FORGOTTEN, LEARNT, **{"replay-1": change})
    order, half, price = judge_study("replay", arms)
    assert (order.outcome, half.outcome, price.outcome) == ("not decided", "not decided", "holds")
    assert order.reason == half.reason == why


def test_a_missing_arm_is_named_and_the_seeds_that_all_have_are_used():
    arms = [one for one in replay(4, FORGOTTEN, LEARNT) if one.name != "replay-5"]
    order, half, _ = judge_study("replay", arms)
    assert (order.outcome, order.reason) == ("not decided", "the arm replay-5 is missing")
    assert half.outcome == "holds"
    fewer = [one for one in replay(4, FORGOTTEN, LEARNT) if (one.name, one.seed) != ("replay-5", 2)]
    assert judge_study("replay", fewer)[0].seeds == (0, 1, 3)


def test_a_score_that_was_not_measured_decides_nothing():
    arms = replay(3, FORGOTTEN, (math.nan,) * 6)
    order, _, price = judge_study("replay", arms)
    assert (order.outcome, price.outcome) == ("holds", "not decided")
    assert price.reason == "a score that it needs was not measured"


def test_damage_that_is_won_back_is_damage_all_the_same():
    def arms(end):
        return [
            arm(
                name,
                seed,
                (2.0 if name == "going-on" else end) + NOISE[seed] / 10,
                3.0,
                early=early + NOISE[seed],
            )
            for name, early in (
                ("going-on", 2.0),
                ("re-warmed-half", 2.1),
                ("re-warmed-same", 2.2),
                ("re-warmed-twice", 2.4),
            )
            for seed in range(3)
        ]

    assert list(outcomes("same_data", arms(2.0)).values()) == ["holds", "does not hold"]
    assert list(outcomes("same_data", arms(1.8)).values()) == ["holds", "does not hold"]
    assert list(outcomes("same_data", arms(2.1)).values()) == ["holds", "holds"]


@pytest.mark.parametrize(("true", "wrong", "most"), [(0.0, "holds", 0.025), (0.05, "does not hold", 0.025)])
def test_noise_alone_decides_wrongly_as_seldom_as_the_level_says(true, wrong, most):
    """1,000 studies of three seeds whose differences have a deviation of 0.1, with a margin of 0.02."""
    contrast = CLAIMS["replay"][2].contrasts[0]
    random = np.random.default_rng(7)
    values = true + 0.1 * random.standard_normal((1000, 3))
    found = [compare_values(contrast, row.tolist(), margin=0.02).outcome for row in values]
    rate = found.count(wrong) / len(found)
    assert rate < most + 3 * (most / len(found)) ** 0.5
    assert found.count("not decided") > 0.9 * len(found)


def test_each_size_has_a_verdict_of_its_own():
    small = replay(3, FORGOTTEN, LEARNT, **{f"replay-{share}": {"size": "small"} for share in REPLAY})
    found = judge_study("replay", [*replay(1, FORGOTTEN, LEARNT), *small])
    assert [(one.size, one.outcome) for one in found[::3]] == [("", "not decided"), ("small", "holds")]
    assert list(verdict_lines(found))[3].startswith(
        "holds: The more is replayed, the less is forgotten (small); "
    )


@pytest.mark.parametrize(
    ("upstream", "downstream", "outcome"),
    [(2.3, 2.3, "holds"), (2.6, 2.3, "does not hold"), (2.3, 2.6, "does not hold")],
)
def test_an_average_is_held_against_the_line_between_its_ends(upstream, downstream, outcome):
    """The base is at (2, 3) and the continued model at (3, 2): the middle of the line is at 2.5 in both."""
    ends = {"average-0": (2.0, 3.0), "average-50": (upstream, downstream), "average-100": (3.0, 2.0)}
    arms = [
        arm(name, seed, old + NOISE[seed] / 10, new + NOISE[-1 - seed] / 10)
        for name, (old, new) in ends.items()
        for seed in range(3)
    ]
    (verdict,) = judge_study("merge", arms)
    assert verdict.outcome == outcome


def test_the_base_s_own_text_is_held_against_half_of_the_forgetting():
    for old, outcome in ((2.2, "holds"), (2.8, "does not hold")):
        ends = {"none": 3.0, "true-replay": 2.1, "self-replay": old}
        arms = [
            arm(name, seed, end + NOISE[seed] / 10 * (name == "none"), 2.0)
            for name, end in ends.items()
            for seed in range(3)
        ]
        (verdict,) = judge_study("self_replay", arms)
        assert verdict.outcome == outcome


def test_claims_are_about_studies_that_exist():
    assert set(CLAIMS) <= set(STUDIES)
