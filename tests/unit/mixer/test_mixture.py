"""Which sample is number i: whole epochs, exact shares, phases that go on, and a fingerprint that tells."""

import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.mixer_recipes import begun, mixture_of, recipe_of, sizes_of
from tokenization.errors import UserError, UserErrors
from trainer.mixer.mixture import Mixture
from trainer.recipe import load

ORDERS = {
    "shuffled": "max_epochs: null",
    "sequential": "max_epochs: null, order: sequential, offset: 5",
    "blocks": "max_epochs: null, order: blocks, block: 4",
}


def scan(mixture, phase, start, stop):
    """Samples one by one, as (source, index, epoch)."""
    return [one for i in range(start, stop) for one in drawn(mixture, phase, i, i + 1)]


def drawn(mixture, phase, start, stop):
    """The same in one call."""
    found = mixture.samples(phase, start, stop)
    names = [mixture.names[number] for number in found.source]
    return list(zip(names, found.index.tolist(), found.epoch.tolist(), strict=True))


# ---- every sample once per epoch, no gap, no repeat


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    shares=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    orders=st.lists(st.sampled_from(sorted(ORDERS)), min_size=5, max_size=5),
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    seed=st.integers(0, 2**40),
)
def test_each_epoch_has_each_sample_once_across_phases(sizes, shares, orders, lengths, seed):
    names = [f"s{k}" for k in range(len(sizes))]
    total = sum(shares[: len(sizes)])
    weights = ", ".join(f"{name}: {share}/{total}" for name, share in zip(names, shares, strict=False))
    options = {
        name: ORDERS[order].replace("offset: 5", f"offset: {min(5, size - 1)}")
        for name, order, size in zip(names, orders, sizes, strict=False)
    }
    mixture = mixture_of(
        dict(zip(names, sizes, strict=True)),
        [weights] * len(lengths),
        samples=lengths,
        options=options,
        seed=seed,
    )
    run = [ref for phase, length in enumerate(lengths) for ref in drawn(mixture, phase, 0, length)]
    assert max(Counter(run).values()) == 1
    for name, size in zip(names, sizes, strict=True):
        uses = [(epoch, index) for source, index, epoch in run if source == name]
        epochs, rest = divmod(len(uses), size)
        for epoch in range(epochs):
            in_turn = uses[epoch * size : (epoch + 1) * size]
            assert sorted(in_turn) == [(epoch, index) for index in range(size)]
        assert all(epoch == epochs and index < size for epoch, index in uses[epochs * size :])
        assert len(uses[epochs * size :]) == rest
        assert mixture.consumed(len(lengths) - 1, lengths[-1])[name] == len(uses)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**15), st.integers(1, 40), st.integers(0, 1))
def test_seeking_equals_scanning(start, length, phase):
    sizes = {"a": 700, "b": 300, "c": 10**13, "d": 50}
    options = {"b": ORDERS["blocks"], "d": ORDERS["sequential"]}
    mixed = ["a: 1/3, b: 1/6, c: 1/2", "from: 16_000, a: 0.001, c: 0.499, d: 1/2"]
    mixture = mixture_of(sizes, [mixed, "c: 1"], samples=[10**15, 10**9], options=options)
    assert scan(mixture, phase, start, start + length) == drawn(mixture, phase, start, start + length)


def test_epochs_have_orders_of_their_own_and_the_seed_decides():
    def order(epoch, seed):
        mixture = mixture_of({"a": 100}, ["a: 1"], samples=[300], seed=seed)
        return tuple(mixture.samples(0, 100 * epoch, 100 * epoch + 100).index.tolist())

    assert len({order(epoch, seed) for epoch in range(3) for seed in range(3)}) == 9
    assert order(1, 1) == order(1, 1)


def test_sequential_is_the_order_on_disk_from_the_offset_on():
    options = {"a": "max_epochs: null, order: sequential, offset: 3"}
    mixture = mixture_of({"a": 5}, ["a: 1"], samples=[12], options=options)
    assert mixture.samples(0, 0, 12).index.tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert mixture.samples(0, 0, 12).epoch.tolist() == [0] * 5 + [1] * 5 + [2] * 2


# ---- shares


def test_a_tiny_share_is_realised_exactly():
    mixture = mixture_of({"big": 10**9, "tiny": 10**6}, ["big: 99.9%, tiny: 0.1%"], samples=[10**9])
    assert mixture.consumed(0, 10**6) == {"big": 999_000, "tiny": 1_000}
    for batches in (1, 2, 124, 125, 126, 10_001):
        assert abs(mixture.consumed(0, 8 * batches)["tiny"] - 8 * batches / 1000) < 1
    one_period = mixture.samples(0, 5_000, 6_000)
    assert (one_period.source == 1).sum() == 1


def test_segments_change_the_weights_at_the_next_whole_sample():
    # 33 tokens of 16 a sample: the third sample still holds a token from before, so the fourth is the first
    mixture = mixture_of({"a": 100, "b": 100}, [["a: 1", "from: 33, b: 1"]], samples=[8])
    assert mixture.samples(0, 0, 8).source.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert mixture.consumed(0, 5) == {"a": 3, "b": 2}


REPLAY = {"zh-a": "new", "zh-b": "new", "en-a": "replay", "en-b": "replay"}
SIZES = {"zh-a": 300, "zh-b": 100, "en-a": 50, "en-b": 150}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        # by size: 3 : 1 of three quarters, 1 : 3 of a quarter
        ("replay_ratio: 0.25", ["9/16", "3/16", "1/16", "3/16"]),
        # weights of one role count among themselves; the other role goes by size
        ("replay_ratio: 1/4, en-a: 2, en-b: 1", ["9/16", "3/16", "1/6", "1/12"]),
        # only the sources that are named take part
        ("replay_ratio: 10%, zh-b: 1, en-a: 7", ["0", "9/10", "1/10", "0"]),
        ("replay_ratio: 0", ["3/4", "1/4", "0", "0"]),
        ("replay_ratio: 1, en-a: 1, en-b: 1", ["0", "0", "1/2", "1/2"]),
        ("zh-a: 75%, en-b: 0.25", ["3/4", "0", "0", "1/4"]),
    ],
)
def test_replay_ratio_is_the_replay_sources_total(written, expected):
    mixture = mixture_of(SIZES, [written], samples=[48], roles=REPLAY)
    weights = mixture.spans[0][0].weights
    assert sum(weights) == 1
    replayed = sum(weights[2:])
    assert replayed == sum(map(Fraction, expected[2:]))  # roles are exact, splits by size to a step
    for weight, wanted in zip(weights, expected, strict=True):
        assert abs(weight - Fraction(wanted)) <= Fraction(1, 2**14)
        assert (weight == 0) == (wanted == "0")


def test_a_source_too_small_for_a_step_still_takes_part():
    sizes = {"zh": 10**9, "zh-tiny": 1, "en": 5}
    roles = {"zh": "new", "zh-tiny": "new", "en": "replay"}
    weights = mixture_of(sizes, ["replay_ratio: 1%"], samples=[100], roles=roles).spans[0][0].weights
    assert 0 < weights[1] < Fraction(1, 2**14)
    assert weights[2] == Fraction(1, 100)


# ---- phases, and what a run recorded of its past


def test_a_later_phase_goes_on_and_a_new_source_starts_at_0():
    options = dict.fromkeys("abc", "max_epochs: null, order: sequential")
    mixture = mixture_of(
        {"a": 50, "b": 50, "c": 50}, ["a: 1/2, b: 1/2", "a: 1/2, c: 1/2"], samples=[10, 8], options=options
    )
    last = drawn(mixture, 0, 0, 10)[-2:]
    assert last == [("a", 4, 0), ("b", 4, 0)]
    assert drawn(mixture, 1, 0, 4) == [("a", 5, 0), ("c", 0, 0), ("a", 6, 0), ("c", 1, 0)]
    assert mixture.consumed(1, 4) == {"a": 7, "b": 5, "c": 2}


def test_the_recorded_past_stands_whatever_the_recipe_now_says_of_it():
    edited = mixture_of(
        {"a": 50, "b": 50, "c": 50}, ["c: 1", "a: 1"], samples=[30, 10], past=[begun(30), begun(0, {"a": 7})]
    )
    planned = mixture_of({"a": 50, "b": 50, "c": 50}, ["a: 1", "a: 1"], samples=[7, 10])
    assert drawn(edited, 1, 0, 10) == drawn(planned, 1, 0, 10)
    assert edited.consumed(1, 0) == {"a": 7, "b": 0, "c": 0}
    assert edited.describe(1) == planned.describe(1)
    # a's 51st use is the 44th of phase 1, and c, which the recipe now puts into phase 0, was never used
    longer = mixture_of(
        {"a": 50, "c": 20}, ["c: 1", "a: 1"], samples=[30, 60], past=[begun(30), begun(0, {"a": 7})]
    )
    assert longer.find_use("a", 50) == (1, 43)
    assert longer.find_use("c", 0) is None
    assert longer.first_repeat() == ("a", (30 + 43) * 16)


def described(sizes, mixtures, record=None):
    """Phases' descriptions, and what a run that stands at the start of the last one would record."""
    past = () if record is None else [begun(20), begun(0, record)]
    mixture = mixture_of(sizes, mixtures, samples=[20] * len(mixtures), past=past)
    data = mixture.describe(len(mixtures) - 1)
    return data, data.taken_before


def test_a_source_that_rests_for_a_phase_is_remembered():
    sizes = {"a": 50, "b": 50}
    data, record = described(sizes, ["a: 1", "b: 1"])
    assert record == {"a": 20}
    assert data.segments[0].weights == {"b": "1"}
    # gone from the recipe while it rests, and back for the third phase: it goes on where it was
    gone, record = described({"b": 50}, ["b: 1", "b: 1"], record)
    assert gone == data
    again = mixture_of(
        sizes, ["a: 1", "b: 1", "a: 1"], samples=[9, 20, 20], past=[begun(9), begun(0, record)]
    )
    assert again.consumed(2, 0) == {"a": 20, "b": 20}


@pytest.mark.parametrize(
    ("batch", "done", "ends"),
    [
        (8, [16], 104),  # as planned: 100 samples are 13 batches of 8
        (30, [16], 106),  # 84 are left: 3 batches of 30 from sample 16 on
        (30, [104], 104),  # it was over before the batch changed
        (30, [104, 30], 104),
    ],
)
def test_a_batch_size_that_changes_in_a_phase_moves_its_end_and_the_next_goes_on_there(batch, done, ends):
    sizes, phases = {"a": 900}, ["a: 1", "a: 1"]
    past = [begun(samples, {"a": sum(done[:at])}) for at, samples in enumerate(done)]
    mixture = mixture_of(sizes, phases, samples=[100, 100], global_batch_size=batch, past=past)
    assert mixture.phase_samples[0] == ends
    assert mixture.consumed(1, 0) == {"a": ends}
    last, first = mixture.batch(0, ends - batch, batch), mixture.batch(1, 0, batch)
    assert not set(last.index.tolist()) & set(first.index.tolist())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([1, 2, 3, 8, 30]), min_size=1, max_size=12))
def test_a_change_of_batch_size_loses_and_repeats_nothing(batches):
    mixture = mixture_of({"a": 90, "b": 40}, ["a: 0.7, b: 0.3"], samples=[400])
    position, seen = 0, []
    for size in batches:
        batch = mixture.batch(0, position, size)
        seen += zip(batch.source.tolist(), batch.index.tolist(), batch.epoch.tolist(), strict=True)
        position += size
    expected = mixture.samples(0, 0, position)
    assert Counter(seen) == Counter(
        zip(expected.source.tolist(), expected.index.tolist(), expected.epoch.tolist(), strict=True)
    )


def test_a_phase_lasts_a_whole_number_of_global_batches():
    mixture = mixture_of({"a": 90}, ["a: 1", "a: 1"], samples=[10, 20], global_batch_size=8)
    assert mixture.phase_samples == (16, 24)
    assert mixture.consumed(1, 0) == {"a": 16}


def test_no_source_keeps_to_the_same_rows_of_the_batch():
    mixture = mixture_of({"zh": 10**6, "en": 10**6}, ["zh: 3/4, en: 1/4"], samples=[10**6])
    rows = np.array([mixture.batch(0, 16 * k, 16).source for k in range(4000)])
    assert (rows.sum(axis=1) == 4).all()  # each batch has its share
    assert abs(rows.mean(axis=0) - 1 / 4).max() < 0.03  # and so has each row over time


def test_ten_trillion_tokens_take_no_more_memory_than_ten_thousand():
    sizes = {f"s{k}": 10**8 * (k + 1) for k in range(20)}
    tracemalloc.start()
    mixture = mixture_of(
        sizes, ["replay_ratio: 1%"], samples=[2 * 10**9], roles={"s3": "replay"}, seq_len=4096
    )
    mixture.batch(0, 10**12, 1024)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * 2**20


def test_the_mixer_needs_no_torch():
    code = (
        "import sys, trainer.mixer.simulate, trainer.plan.data, trainer.mixer.loader as loader;"
        "sys.exit(bool({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


# ---- the description


BASE = {"samples": [100, 100], "options": {"b": "max_epochs: null, order: blocks, block: 8"}}
PHASES = ["a: 1/2, b: 1/2", "a: 1/4, b: 3/4"]


def describe(phase=1, sizes=None, mixtures=None, **changes):
    return mixture_of(sizes or {"a": 90, "b": 40}, mixtures or PHASES, **(BASE | changes)).describe(phase)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"seq_len": 32},
        {"mixtures": [PHASES[0], "a: 1/5, b: 4/5"]},
        {"mixtures": ["a: 1/3, b: 2/3", PHASES[1]]},  # the past differs, so sources go on elsewhere
        {"mixtures": [PHASES[0], [PHASES[1], "from: 160, a: 1"]]},
        {"samples": [110, 100]},
        {"sizes": {"a": 91, "b": 40}},
        {"options": {"b": "max_epochs: null, order: blocks, block: 16"}},
        {"options": {"b": "max_epochs: null"}},
        {"options": BASE["options"] | {"a": "max_epochs: null, order: sequential, offset: 1"}},
        {"sizes": {"b": 40, "a": 90}},  # ties go by the recipe's order
    ],
)
def test_whatever_changes_the_samples_changes_the_description(changed):
    assert describe(**changed) != describe()


@pytest.mark.parametrize(
    "changed",
    [
        {"samples": [100, 5000]},  # the phase lasts longer
        {"global_batch_size": 4},
        {"sizes": {"a": 90, "unused": 5, "b": 40}},
        {"options": BASE["options"] | {"a": "max_epochs: 3"}},
    ],
)
def test_what_leaves_the_samples_alone_leaves_the_description(changed):
    assert describe(**changed) == describe()


def test_the_description_covers_what_a_source_holds():
    recipe = recipe_of({"a": "new"}, ["a: 1"], samples=[10])
    sizes = sizes_of({"a": 90})
    other = {"a": replace(sizes["a"], fingerprint="another")}
    whole, changed = (Mixture.from_recipe(recipe, found).describe(0) for found in (sizes, other))
    assert whole != changed


def test_the_samples_themselves_never_change():
    # Written down when the mixer's rules were: if this fails, raise mixture.VERSION
    mixture = mixture_of(
        {"a": 1000, "b": 50, "c": 77},
        ["a: 1/2, b: 1/3, c: 1/6"],
        samples=[1000],
        seed=7,
        options={"b": ORDERS["blocks"], "c": ORDERS["sequential"]},
    )
    assert drawn(mixture, 0, 600, 606) == [
        ("a", 352, 0),
        ("b", 23, 4),
        ("a", 951, 0),
        ("b", 20, 4),
        ("a", 13, 0),
        ("c", 28, 1),
    ]
    assert mixture.batch(0, 600, 6).index.tolist() == [28, 20, 352, 23, 951, 13]


# ---- epochs and caps


def test_the_plan_is_refused_where_a_source_runs_out():
    options = {"a": "max_epochs: null", "b": "max_epochs: 3/2"}
    mixture = mixture_of(
        {"a": 100, "b": 20}, ["a: 3/4, b: 1/4", "a: 1/2, b: 1/2"], samples=[80, 40], options=options
    )
    # b gives 20 in phase 0 and 20 in phase 1: its 31st use is the 11th of phase 1, whose slots are
    # a b a b ...: sample 21 of phase 1, after 80 + 21 samples of 16 tokens
    with pytest.raises(UserErrors) as caught:
        mixture.check_epochs()
    assert str(caught.value) == (
        "sources.b.max_epochs: '3/2' is not enough: the source's 20 samples (320 tokens) run out at token "
        "1,616 of the run, in phase phase1; the plan uses 2 epochs: raise it, lower the source's weight, or "
        "train less"
    )
    assert [source for source, _, _ in drawn(mixture, 1, 20, 21)] == ["a"]
    with pytest.raises(
        UserError,
        match=r"^sources\.b\.max_epochs: '3/2' is reached: all samples of the source are used; raise it",
    ):
        mixture.samples(1, 0, 22)
    assert mixture.first_repeat() == ("b", (80 + 1) * 16)


def test_a_plan_may_end_exactly_at_the_cap():
    mixture = mixture_of({"a": 30}, ["a: 1"], samples=[30], options={"a": "max_epochs: 1"})
    mixture.check_epochs()
    assert mixture.first_repeat() is None
    mixture = mixture_of({"a": 30}, ["a: 1"], samples=[31], options={"a": "max_epochs: 1"})
    with pytest.raises(UserErrors, match="run out at token 480 of the run"):
        mixture.check_epochs()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 130))
def test_finding_a_use_agrees_with_scanning(size_a, size_b, share, use):
    mixture = mixture_of(
        {"a": size_a, "b": size_b},
        [f"a: {share}/10, b: {10 - share}/10", ["b: 1", "from: 320, a: 1/2, b: 1/2"]],
        samples=[50, 60],
    )
    for name in "ab":
        taken = [
            (phase, i)
            for phase, length in ((0, 50), (1, 60))
            for i, ref in enumerate(drawn(mixture, phase, 0, length))
            if ref[0] == name
        ]
        assert mixture.find_use(name, use) == (taken[use] if use < len(taken) else None)


# ---- errors


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"sizes": {"a": 0, "b": 9}},
            r"sources\.a: 'data/a' holds 1 tokens, too few for a sample of 16 and the next one",
        ),
        (
            {"options": {"a": "order: sequential, offset: 90"}},
            r"sources\.a\.offset: 90 is beyond the source's 90 samples",
        ),
        ({"options": {"a": "offset: 9"}}, r"sources\.a\.offset: 9 has no effect with order shuffled"),
        (
            {"mixtures": [PHASES[0], ["a: 1", "from: 1600, b: 1"]]},
            r"phases\.1\.mixture\.1\.from: 1600 is beyond the phase's end at 1,600 tokens",
        ),
        (
            {"mixtures": [PHASES[0], "replay_ratio: 0.1"]},
            r"phases\.1\.mixture\.0\.replay_ratio: gives role replay a share of 1/10, but no source",
        ),
        (
            {"mixtures": [PHASES[0], "replay_ratio: 0, a: 0, b: 0"]},
            r"phases\.1\.mixture\.0: gives role new a share of 1, but each of its sources a weight of 0",
        ),
        (
            {"mixtures": [PHASES[0], "a: 0.3333333, b: 0.6666667"]},
            r"phases\.1\.mixture\.0: .* common denominator of 10,000,000, above the limit of 1,048,576",
        ),
    ],
)
def test_what_is_wrong_is_told_by_field(changes, told):
    with pytest.raises(UserErrors, match=told):
        describe(**changes)


def test_an_anneal_may_cut_off_a_segment():
    edit = "phases.0.schedule.anneal={from_tokens: 320, tokens: 160, end_lr: 0}"
    whole = recipe_of({"a": "new", "b": "new"}, [["a: 1", "from: 800, b: 1"]], samples=[100])
    cut = load.parse_recipe(load.dump_recipe(whole), [edit])
    mixture = Mixture.from_recipe(cut, sizes_of({"a": 90, "b": 40}))
    assert mixture.phase_samples == (30,)
    assert mixture.consumed(0, 30) == {"a": 30, "b": 0}


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(UserErrors) as caught:
        mixture_of(
            {"a": 9, "b": 9},
            ["replay_ratio: 1", "a: 1/1048577, b: 1048576/1048577"],
            samples=[10, 10],
        )
    assert len(caught.value.problems) == 2
