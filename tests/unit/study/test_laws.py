"""Laws find what was planted, say how sure they are, and predict what they have not seen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.study.laws import (
    D_CPT_LAW,
    DYNAMICS_LAW,
    FORGETTING_LAW,
    LAWS,
    Law,
    Observations,
    annealing_areas,
    back_tests,
    fit_law,
)

PLANTED = {
    "D-CPT": {
        "E": 0.7, "A": 0.15, "alpha": 0.4, "B": 0.3, "eta": 0.6, "beta": 0.35,
        "C": 0.02, "epsilon": 0.05, "gamma": 0.8,
    },
    "forgetting": {"A": 1.2, "b": 0.45, "B": 300.0, "a": 0.5, "E": -0.02},
    "learning dynamics": {
        "L0": 1.1, "A": 0.3, "S0": 0.8, "alpha": 0.5, "C": 0.15, "B": 0.8, "K": 12.0, "beta": 0.4,
    },
}  # fmt: skip


def observed(law: Law, noise: float = 0.0, seed: int = 0, sizes=(5e7, 1.5e8, 4e8), **planted) -> Observations:
    """What arms of three sizes, six shares of replay and two budgets measure if the law holds."""
    random = np.random.default_rng(seed)
    rows = []
    for arm, (weights, replay, budget) in enumerate(
        (w, p, d) for w in sizes for p in (0, 0.01, 0.05, 0.1, 0.25, 0.5) for d in (2.5e8, 1e9)
    ):
        rates = 1e-3 * (1 + arm % 3) * np.concatenate([np.linspace(0, 1, 10), np.linspace(1, 0.1, 90)])
        areas = annealing_areas(rates)
        for share in (0.25, 0.5, 0.75, 1.0):
            step = int(share * 100) - 1
            base = 1.0 + 0.1 * (weights < 1e8)
            rows.append((arm, weights, replay, budget * share, base, areas[0][step], areas[1][step]))
    arm, weights, replay, tokens, base, forward, annealed = np.array(rows, dtype=float).T
    largest = forward.max()
    data = Observations(
        np.zeros(len(rows)),
        {
            "weights": weights, "replay": replay, "ratio": 1 - replay, "tokens": tokens, "base": base,
            "forward_area": forward / largest, "annealing_area": annealed / largest,
        },
        arm.astype(int),
        {"weights": weights.max(), "tokens": tokens.max()},
    )  # fmt: skip
    values = {**PLANTED[law.name], **planted}
    return replace(data, loss=law.predict(values, data) + random.normal(0, noise, len(rows)))


@pytest.mark.parametrize("name", LAWS)
def test_what_was_planted_is_predicted_through_the_noise(name):
    law = LAWS[name]
    fit = fit_law(law, observed(law, noise=0.003), bootstraps=0)
    truth = observed(law)
    predicted = law.predict(fit.values, truth)
    assert np.abs(predicted - truth.loss).max() < 0.01
    assert fit.relative_error < 0.005
    assert fit.residuals.std() == pytest.approx(0.003, rel=0.25)
    assert set(fit.free) == set(PLANTED[name])


def test_intervals_hold_what_was_planted_about_as_often_as_they_say():
    inside = []
    for seed in range(12):
        fit = fit_law(FORGETTING_LAW, observed(FORGETTING_LAW, noise=0.003, seed=seed), bootstraps=100)
        inside += [fit.interval(p)[0] <= v <= fit.interval(p)[1] for p, v in PLANTED["forgetting"].items()]
    assert np.mean(inside) > 0.8


def test_the_parameters_of_forgetting_are_recovered():
    fit = fit_law(FORGETTING_LAW, observed(FORGETTING_LAW), bootstraps=0)
    assert fit.values == pytest.approx(PLANTED["forgetting"], rel=1e-3)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.2, 3.0), st.floats(0.1, 1.0), st.floats(20.0, 2000.0), st.floats(0.2, 1.0))
def test_any_forgetting_is_recovered(scale, by_tokens, by_replay, by_size):
    planted = {"A": scale, "b": by_tokens, "B": by_replay, "a": by_size, "E": 0.01}
    data = observed(FORGETTING_LAW, **planted)
    fit = fit_law(FORGETTING_LAW, data, bootstraps=0)
    assert np.abs(fit.residuals).max() < 1e-3 * scale
    assert fit.values["b"] == pytest.approx(by_tokens, rel=0.05)


@pytest.mark.parametrize("name", ["D-CPT", "forgetting"])
def test_a_law_that_holds_predicts_what_it_has_not_seen_and_one_that_does_not_is_found_out(name):
    law = LAWS[name]
    tests = {one.held_out: one for one in back_tests(law, observed(law, noise=0.002))}
    assert set(tests) == {"the largest size", "the longest budget", "the second half of the tokens"}
    for test in tests.values():
        assert test.error < 0.02, test.held_out
        assert test.error < test.error_without, test.held_out
        assert len(test.measured) == len(test.predicted)
    bent = observed(law)
    sudden = bent.loss + 0.5 * (bent.inputs["tokens"] > 6e8)  # a break that no law foresees
    wrong = {one.held_out: one for one in back_tests(law, replace(bent, loss=sudden))}
    assert wrong["the longest budget"].error > 0.1


def test_the_dynamics_predict_the_second_half():
    tests = {one.held_out: one for one in back_tests(DYNAMICS_LAW, observed(DYNAMICS_LAW, noise=0.001))}
    second = tests["the second half of the tokens"]
    assert second.error < 0.02
    assert second.error < second.error_without


def test_what_one_size_cannot_tell_is_held_and_said():
    data = observed(D_CPT_LAW, sizes=(1e8,))
    fit = fit_law(D_CPT_LAW, data, bootstraps=0)
    assert {"A", "alpha"}.isdisjoint(fit.free)
    assert fit.values["A"] == 0
    assert fit.relative_error < 1e-3
    told = fit.to_json()["parameters"]
    assert (told["A"]["free"], told["B"]["free"]) == (False, True)


def test_too_few_points_are_not_fitted():
    data = observed(FORGETTING_LAW)
    assert fit_law(FORGETTING_LAW, data.only(data.arm < 2)) is None
    last = data.inputs["tokens"] == 1e9
    assert fit_law(FORGETTING_LAW, data.only(last & (data.arm < 8))) is None, "4 points for 4 parameters"


def test_intervals_shrink_with_the_noise_and_are_the_same_again():
    loud, quiet = (
        fit_law(FORGETTING_LAW, observed(FORGETTING_LAW, noise=n), bootstraps=40) for n in (0.05, 0.002)
    )
    widths = [np.subtract(*reversed(fit.interval("b"))) for fit in (loud, quiet)]
    assert widths[0] > 5 * widths[1] > 0
    again = fit_law(FORGETTING_LAW, observed(FORGETTING_LAW, noise=0.05), bootstraps=40)
    assert json.dumps(again.to_json()) == json.dumps(loud.to_json())


def test_the_areas_of_a_learning_rate_are_those_of_their_definition():
    rates = [0.1, 0.3, 0.3, 0.2, 0.0]
    forward, annealed = annealing_areas(rates, memory=0.5)
    assert forward.tolist() == pytest.approx([0.1, 0.4, 0.7, 0.9, 0.9])
    falls = [0.0, -0.2, 0.0, 0.1, 0.2]
    by_hand = [sum(0.5 ** (i - k) * falls[k] for i in range(s + 1) for k in range(i + 1)) for s in range(5)]
    assert annealed.tolist() == pytest.approx(by_hand)
