"""The learning rate after t tokens: values by hand, closed forms, joints, and what may not change it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.scheduler_runs import schedule
from trainer.recipe.schedule import Schedule
from trainer.scheduler.curves import Curve

KINDS = ["cosine", "cosine_clamped", "linear", "inverse_sqrt", "constant", "wsd", "infinite"]
STAGES = [
    {"shape": "constant", "length": "39%"},
    {"shape": "1-sqrt", "length": "30%", "end_lr": "50%"},
    {"shape": "inverse_sqrt", "length": "1/10", "end_lr": "1e-4"},
    {"shape": "exponential", "length": 2000, "end_lr": "1/10"},
]


def of_kind(kind, **fields):
    extra = {"stages": STAGES} if kind == "stages" else {}
    return schedule(**{"kind": kind, "max_lr": "3e-4", "warmup": "1%", **extra, **fields})


@pytest.mark.parametrize(
    ("fields", "tokens", "expected"),
    [
        # linear warm-up over 1 % of 10,000 tokens: 100 tokens, from 0
        ({"kind": "cosine"}, 0, 0.0),
        ({"kind": "cosine"}, 25, 7.5e-5),
        ({"kind": "cosine"}, 50, 1.5e-4),
        # from start_lr 1e-4: half-way is 2e-4
        ({"kind": "cosine", "start_lr": "1e-4"}, 0, 1e-4),
        ({"kind": "cosine", "start_lr": "1e-4"}, 50, 2e-4),
        # cosine over the 9,900 tokens that are left: top, a quarter, half, end, and beyond it
        ({"kind": "cosine"}, 100, 3e-4),
        ({"kind": "cosine"}, 100 + 2475, 3e-5 + 2.7e-4 * (0.5 + math.sqrt(0.125))),
        ({"kind": "cosine"}, 100 + 4950, 1.65e-4),
        ({"kind": "cosine"}, 10_000, 3e-5),
        ({"kind": "cosine"}, 99_999, 3e-5),
        # the clamped cosine runs over the whole phase towards 0: half of max_lr at half of it
        ({"kind": "cosine_clamped"}, 5_000, 1.5e-4),
        ({"kind": "cosine_clamped", "warmup": 0}, 0, 3e-4),
        ({"kind": "cosine_clamped"}, 2_500, 1.5e-4 * (1 + math.sqrt(0.5))),
        ({"kind": "cosine_clamped"}, 9_000, 3e-5),
        ({"kind": "linear"}, 100 + 4950, 1.65e-4),
        ({"kind": "linear", "min_lr": 0}, 10_000, 0.0),
        # h(x) = 1/sqrt(1 + 10 x) - 1: h(0.3) = -1/2 and h(1) = 1/sqrt(11) - 1
        ({"kind": "inverse_sqrt", "warmup": 0}, 3_000, 3e-4 - 2.7e-4 * 0.5 / (1 - 1 / math.sqrt(11))),
        ({"kind": "constant"}, 100, 3e-4),
        ({"kind": "constant"}, 10_000, 3e-4),
        # wsd: decay over the last 10 %, 1 - sqrt: a quarter of the way in, half of the fall is done
        ({"kind": "wsd"}, 9_000, 3e-4),
        ({"kind": "wsd"}, 9_250, 1.65e-4),
        ({"kind": "wsd", "decay_shape": "linear"}, 9_500, 1.65e-4),
        ({"kind": "wsd", "decay_shape": "exponential"}, 9_500, math.sqrt(3e-4 * 3e-5)),
        ({"kind": "wsd", "decay": 2000, "decay_shape": "linear"}, 9_000, 1.65e-4),
        # infinite: 1 % warm-up, 60 % cooldown to 0.55 max_lr, 25 % constant, 14 % exponential
        ({"kind": "infinite"}, 100, 3e-4),
        ({"kind": "infinite"}, 100 + 3_000, (3e-4 + 1.65e-4) / 2),
        ({"kind": "infinite"}, 6_100, 1.65e-4),
        ({"kind": "infinite"}, 8_600, 1.65e-4),
        ({"kind": "infinite"}, 9_300, math.sqrt(1.65e-4 * 3e-5)),
        ({"kind": "infinite"}, 10_000, 3e-5),
        (
            {"kind": "infinite", "cooldown_shape": "inverse_sqrt"},
            100 + 1_800,
            3e-4 - 1.35e-4 * 0.5 / (1 - 1 / math.sqrt(11)),
        ),
        # stages after the warm-up: constant to 4,000, 1-sqrt to 7,000, inverse_sqrt to 8,000, exponential
        ({"kind": "stages"}, 3_999, 3e-4),
        ({"kind": "stages"}, 4_750, 2.25e-4),
        ({"kind": "stages"}, 7_000, 1.5e-4),
        ({"kind": "stages"}, 8_000, 1e-4),
        ({"kind": "stages"}, 9_000, math.sqrt(1e-4 * 3e-5)),
        ({"kind": "stages"}, 10_000, 3e-5),
        # two cycles of 5,000: each with its warm-up of 1 % (50 tokens)
        ({"kind": "cosine", "cycles": 2}, 25, 1.5e-4),
        ({"kind": "cosine", "cycles": 2}, 50, 3e-4),
        ({"kind": "cosine", "cycles": 2}, 5_000, 0.0),
        ({"kind": "cosine", "cycles": 2}, 5_025, 1.5e-4),
        ({"kind": "cosine", "cycles": 2}, 5_050 + 2_475, 1.65e-4),
        # an anneal leaves at 5,000 from the constant 3e-4
        ({"kind": "constant", "anneal": {"from_tokens": 5000, "tokens": 1000, "end_lr": 0}}, 5_000, 3e-4),
        ({"kind": "constant", "anneal": {"from_tokens": 5000, "tokens": 1000, "end_lr": 0}}, 5_500, 1.5e-4),
        ({"kind": "constant", "anneal": {"from_tokens": 5000, "tokens": 1000, "end_lr": 0}}, 6_000, 0.0),
        (
            {
                "kind": "constant",
                "anneal": {"from_tokens": 0, "tokens": 4, "end_lr": 0, "shape": "1-sqrt"},
                "warmup": 0,
            },
            1,
            1.5e-4,
        ),
    ],
)
def test_values_written_by_hand(fields, tokens, expected):
    assert Curve(of_kind(**fields), 10_000)(tokens) == pytest.approx(expected, rel=1e-12, abs=1e-20)


def closed_form(kind, t, total, top, low, warm):
    """The papers' equations, one token at a time and in another form than the code's."""
    x = (t - warm) / (total - warm)
    if kind == "cosine_clamped":
        peak_at = top * math.cos(math.pi * warm / total / 2) ** 2
        return peak_at * t / warm if t < warm else max(top * math.cos(math.pi * t / total / 2) ** 2, low)
    if t < warm:
        return top * t / warm
    if kind == "cosine":
        return low + (top - low) * math.cos(math.pi * x / 2) ** 2
    if kind == "linear":
        return top - (top - low) * x
    if kind == "inverse_sqrt":
        h = lambda y: 1 / math.sqrt(1 + 10 * y) - 1  # noqa: E731
        return top + (low - top) / h(1) * h(x)
    if kind == "constant":
        return top
    if kind == "wsd":
        y = (t - 0.9 * total) / (0.1 * total)
        return top if y < 0 else top - (top - low) * math.sqrt(y)
    level, cooled, leave = 0.55 * top, warm + 0.6 * total, warm + 0.85 * total
    if t < cooled:
        return level + (top - level) * math.cos(math.pi * (t - warm) / (1.2 * total)) ** 2
    return level if t < leave else level * math.exp(math.log(low / level) * (t - leave) / (total - leave))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_papers_equation(kind):
    total = 20_000_000_000
    tokens = np.linspace(0, total, 997).astype(np.int64)
    expected = [closed_form(kind, int(t), total, 3e-4, 3e-5, 0.01 * total) for t in tokens]
    np.testing.assert_allclose(Curve(of_kind(kind), total)(tokens), expected, rtol=1e-9)


def test_cosine_clamped_reaches_min_at_0_795_of_the_phase_and_stays():
    total = 296_859_205_632  # tokens of Gupta et al. 2023
    at = math.acos(-0.8) / math.pi
    assert round(at, 3) == 0.795
    curve = Curve(of_kind("cosine_clamped"), total)
    assert curve(math.floor(at * total) - 1_000_000) > 3e-5
    assert set(curve(np.linspace(math.ceil(at * total), total, 50))) == {3e-5}
    assert Curve(of_kind("cosine"), total)(at * total) > 5e-5  # the textbook cosine is another curve


@pytest.mark.parametrize("kind", [*KINDS, "stages"])
@pytest.mark.parametrize("cycles", [1, 3])
def test_pieces_follow_each_other_without_gap_and_meet_exactly(kind, cycles):
    fields = {"stages": [{"shape": "cosine", "length": "99%", "end_lr": "1e-5"}]} if kind == "stages" else {}
    curve = Curve(of_kind(kind, cycles=cycles, start_lr="reached", **fields), 12_345, incoming_lr=2e-5)
    assert curve.pieces[0].start == 0
    assert curve.pieces[-1].stop == 12_345
    assert curve(0) == 2e-5
    for before, after in zip(curve.pieces, curve.pieces[1:], strict=False):
        assert before.stop == after.start
        at = np.asarray(float(after.start))
        assert before.at(at) == after.at(at)
        assert abs(curve(float(at)) - curve(float(at) - 1e-6)) < 1e-9


@pytest.mark.parametrize("kind", [*KINDS, "stages"])
def test_ends_are_exact(kind):
    curve = Curve(of_kind(kind), 10_000)
    expected = 3e-4 if kind == "constant" else 3e-5
    assert curve.end == curve(10_000) == expected
    assert curve.peak == pytest.approx(3e-4, rel=3e-4)
    if kind != "cosine_clamped":  # its cosine has begun to fall when the warm-up ends
        assert curve(100) == curve.peak == 3e-4


def test_without_warmup_the_first_step_has_max_lr():
    for kind in KINDS:
        assert Curve(of_kind(kind, warmup=0), 10_000)(0) == 3e-4


def test_min_lr_defaults_to_a_tenth_exactly():
    assert of_kind("cosine").min_lr == 3e-5
    assert of_kind("infinite").constant_lr == 1.65e-4


@given(
    kind=st.sampled_from([*KINDS, "stages"]),
    total=st.integers(10_000, 10**13),
    shares=st.lists(st.floats(0, 1.1), min_size=1, max_size=20),
)
def test_arrays_and_numbers_agree_to_the_bit(kind, total, shares):
    fields = {"stages": [{"shape": "linear", "length": "99%", "end_lr": 0}]} if kind == "stages" else {}
    curve = Curve(of_kind(kind, **fields), total)
    tokens = np.array([int(share * total) for share in shares])
    together = curve(tokens.reshape(1, -1))
    assert together.shape == (1, len(shares))
    assert together.dtype == np.float64
    assert together[0].tolist() == [curve(int(token)) for token in tokens]
    assert type(curve(int(tokens[0]))) is float


@given(kind=st.sampled_from(KINDS), share=st.floats(0, 1), total=st.integers(1_000, 10**12))
def test_no_curve_leaves_the_band_between_zero_and_max(kind, share, total):
    curve = Curve(of_kind(kind), total)
    value = curve(int(share * total))
    assert 0 <= value <= 3e-4 * (1 + 1e-15)
    if share * total >= 0.01 * total + 1:
        assert value >= 3e-5 * (1 - 1e-15)


@given(
    kind=st.sampled_from(KINDS),
    leave=st.integers(0, 10_000),
    tokens=st.integers(1, 20_000),
    end=st.sampled_from([0.0, 1e-5]),
    shape=st.sampled_from(["linear", "cosine", "1-sqrt"]),
)
def test_branch_invariance_the_lr_before_an_anneal_does_not_depend_on_it(kind, leave, tokens, end, shape):
    anneal = {"from_tokens": leave, "tokens": tokens, "end_lr": end, "shape": shape}
    plain, branch = Curve(of_kind(kind), 10_000), Curve(of_kind(kind, anneal=anneal), 10_000)
    before = np.arange(leave + 1)
    assert np.array_equal(plain(before), branch(before))
    assert branch(leave + tokens) == branch(leave + tokens + 5_000) == end
    assert branch.end == end


def test_an_anneal_may_end_before_or_after_the_budget_and_falls_from_where_the_curve_is():
    for tokens in (100, 9_000):
        anneal = {"from_tokens": 5_050, "tokens": tokens, "end_lr": 0}
        curve = Curve(of_kind("cosine", anneal=anneal), 10_000)
        assert curve(5_050) == pytest.approx(1.65e-4)
        assert curve(5_050 + tokens // 2) == pytest.approx(0.825e-4)
        assert curve.pieces[-1].stop == 5_050 + tokens


@given(
    kind=st.sampled_from(["constant", "wsd", "infinite"]),
    begun_with=st.integers(1_000, 100_000),
    factor=st.floats(1, 10),
)
def test_a_longer_budget_moves_nothing_before_the_decay(kind, begun_with, factor):
    first = Curve(of_kind(kind), begun_with)
    longer = Curve(of_kind(kind), int(begun_with * factor), horizon=begun_with)
    decay = begun_with if kind == "constant" else int(first.pieces[-1].start)
    before = np.arange(0, decay + 1, max(1, decay // 200))
    assert np.array_equal(first(before), longer(before))
    assert longer.end == first.end


def test_reached_is_where_the_warm_up_begins_and_each_cycle_goes_on_from_the_last():
    curve = Curve(of_kind("cosine", start_lr="reached", cycles=2), 10_000, incoming_lr=6e-5)
    assert curve(0) == 6e-5
    assert curve(25) == pytest.approx((6e-5 + 3e-4) / 2)
    assert curve(5_000) == 3e-5  # where the first cycle ended
    assert curve(5_025) == pytest.approx((3e-5 + 3e-4) / 2)
    falling = Curve(of_kind("constant", start_lr="reached"), 10_000, incoming_lr=9e-4)
    assert falling(50) == pytest.approx(6e-4)
    assert falling.peak == 9e-4


def test_a_shape_that_does_not_exist_is_the_programmers_error():
    with pytest.raises(AssertionError, match="unknown shape"):
        Curve(Schedule.model_construct(**{**of_kind("linear").__dict__, "kind": "zigzag"}), 10)(5)
