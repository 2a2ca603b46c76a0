"""Phases with another seq_len: no token twice in an epoch, little left out, and the same after any resume."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.mixer_recipes import mixture_of, recipe_of, sizes_of
from tokenization.errors import UserError, UserErrors
from trainer.mixer.description import MixtureDescription, PastPhase
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.mixer.simulate import account

LENGTHS = (4, 8, 16, 64)
BATCH = 4
"""Samples of 16 in a step, so that a step holds one sample of 64."""

ORDERS = {
    "shuffled": "max_epochs: null",
    "blocks": "max_epochs: null, order: blocks, block: 12",
    "sequential": "max_epochs: null, order: sequential, offset: 4",
}


def stretches(mixture, phase):
    """(source, epoch, first token) of the samples of a phase, one after another."""
    found = mixture.samples(phase, 0, mixture.phase_samples[phase])
    length = mixture.orders[phase].seq_len
    columns = (found.source.tolist(), found.epoch.tolist(), (found.index * length).tolist())
    return [(mixture.names[source], epoch, start) for source, epoch, start in zip(*columns, strict=True)]


@settings(deadline=None, max_examples=150)
@given(
    tokens=st.lists(st.integers(130, 1500), min_size=3, max_size=3),
    orders=st.lists(st.sampled_from(sorted(ORDERS)), min_size=3, max_size=3),
    phases=st.lists(
        st.tuples(
            st.sampled_from(LENGTHS),
            st.integers(1, 90),
            st.sampled_from(["a: 1/2, b: 1/4, c: 1/4", "a: 1/3, b: 2/3", "a: 1, c: 0", "c: 1"]),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**40),
)
def test_no_token_comes_twice_in_an_epoch_and_a_resume_changes_nothing(tokens, orders, phases, seed):
    lengths, samples, mixtures = map(list, zip(*phases, strict=True))
    options = {name: ORDERS[order] for name, order in zip("abc", orders, strict=True)}
    recipe = recipe_of(
        dict.fromkeys("abc", "new"),
        mixtures,
        samples=samples,
        lengths=lengths,
        options=options,
        seed=seed,
        global_batch_size=BATCH,
    )
    sizes = {
        name: SourceSize((count - 1) // 16, name, count) for name, count in zip("abc", tokens, strict=True)
    }
    mixture = Mixture.from_recipe(recipe, sizes)
    read = defaultdict(lambda: defaultdict(int))
    taken = dict.fromkeys("abc", 0)
    for phase, length in enumerate(lengths):
        for name, epoch, start in stretches(mixture, phase):
            assert 0 <= start <= sizes[name].tokens - length - 1
            taken[name] += length
            for token in range(start, start + length):
                read[name, epoch][token] += 1
        assert {
            name: held[1] for name, held in mixture.drawn(phase, mixture.phase_samples[phase]).items()
        } == taken
    assert all(max(times.values()) == 1 for times in read.values())
    assert {(row.source, row.tokens) for row in account(mixture)[-3:]} == set(taken.items())
    past = ()
    for phase in range(len(phases)):
        record = MixtureDescription.from_json(mixture.describe(phase).to_json())
        past = (*past, PastPhase(mixture.phase_samples[phase], record))
        again = Mixture.from_recipe(recipe, sizes, past)
        for later in range(len(phases)):
            assert again.describe(later) == mixture.describe(later)
            assert stretches(again, later) == stretches(mixture, later)


def epoch_of(order, lengths, tokens=16 * 4 * 40 + 1):
    """What a source gives in its first epoch, when phases of so many samples of 16 take from it."""
    per_phase = tokens // 16 // len(lengths)
    mixture = mixture_of(
        {"a": tokens // 16},
        ["a: 1"] * len(lengths),
        samples=[per_phase] * len(lengths),
        lengths=lengths,
        options={"a": ORDERS[order]},
        global_batch_size=BATCH,
    )
    found = [set() for _ in lengths]
    for phase, length in enumerate(lengths):
        for _, epoch, start in stretches(mixture, phase):
            if epoch == 0:
                found[phase] |= set(range(start, start + length))
    return found


@pytest.mark.parametrize(("order", "window"), [("shuffled", 64), ("blocks", 192), ("sequential", 64)])
def test_a_longer_phase_goes_on_with_the_next_whole_window(order, window):
    short, long = epoch_of(order, [16, 64])
    assert not short & long
    left_out = 16 * 4 * 40 - len(short | long)
    # What is left of one window, and of the last samples, which begin before the offset.
    assert left_out <= window + (64 if order == "sequential" else 0) + 64


def test_a_plan_with_one_length_is_the_plan_that_it_was():
    plain = mixture_of({"a": 90, "b": 40}, ["a: 0.7, b: 0.3"] * 2, samples=[40, 40])
    written = mixture_of({"a": 90, "b": 40}, ["a: 0.7, b: 0.3"] * 2, samples=[40, 40], lengths=[16, 16])
    for phase in (0, 1):
        assert plain.describe(phase) == written.describe(phase)
        assert stretches(plain, phase) == stretches(written, phase)
    assert plain.describe(0).sources["a"].block is None


def run_with(later, begun=None, options="max_epochs: 2"):
    """A source of 320 samples of 16 after 100 of them, in a plan that has a phase of `later` after that."""
    recipe = recipe_of(
        {"a": "new"},
        ["a: 1"] * 2,
        samples=[100, 40],
        lengths=[16, later],
        options={"a": options},
        global_batch_size=BATCH,
    )
    return Mixture.from_recipe(recipe, sizes_of({"a": 320}), () if begun is None else [begun])


def test_a_longer_phase_that_was_not_planned_begins_another_epoch():
    # 100 of 320 samples were read in an order of single samples: few stretches of four are whole.
    before = PastPhase(100, run_with(16).describe(0))
    assert run_with(64).consumed(1, 0) == {"a": 25}
    added = run_with(64, before)
    assert added.consumed(1, 0) == {"a": 80}
    assert added.first_repeat() == ("a", 1600)
    assert {epoch for _, epoch, _ in stretches(added, 1)} == {1}
    with pytest.raises(UserErrors, match=r"sources\.a\.max_epochs: '1' .* phases\.1 reads longer samples"):
        run_with(64, before, "max_epochs: 1").check_epochs()
    # A source that only the longer phase takes from runs out like any other.
    with pytest.raises(UserErrors) as caught:
        mixture_of(
            {"a": 320, "b": 20},
            ["a: 1", "b: 1"],
            samples=[100, 100],
            lengths=[16, 64],
            options={"b": "max_epochs: 1"},
            global_batch_size=BATCH,
        ).check_epochs()
    assert "longer samples" not in str(caught.value)
    # A shorter one needs nothing of the kind: its samples divide the windows.
    assert run_with(4, before).consumed(1, 0) == {"a": 400}


def test_the_running_phase_keeps_its_order_when_a_longer_phase_is_added():
    before = run_with(16)
    begun = PastPhase(52, before.describe(0))
    after = run_with(64, begun)
    assert after.describe(0) == before.describe(0)
    assert stretches(after, 0) == stretches(before, 0)


@pytest.mark.parametrize(
    ("lengths", "options", "line"),
    [
        ([16, 6400], "max_epochs: 1", "phases.1.seq_len: 6,400 is not below the 321 tokens of source a"),
        ([16, 64], "order: blocks, block: 6", "sources.a.block: 6 is not a whole number of samples of phas"),
        ([64, 16], "order: sequential, offset: 2", "sources.a.offset: 2 is not a whole number of samples"),
    ],
)
def test_a_source_that_a_phase_cannot_take_from(lengths, options, line):
    recipe = recipe_of(
        {"a": "new"},
        ["a: 1"] * 2,
        samples=[400, 400],
        lengths=lengths,
        options={"a": options},
        global_batch_size=400,
    )
    with pytest.raises((UserError, UserErrors)) as caught:
        Mixture.from_recipe(recipe, sizes_of({"a": 20}))
    assert line in str(caught.value).replace("6400", "6,400")


@pytest.mark.parametrize(
    ("lengths", "line"),
    [
        ([16, 24], "phases.1.seq_len: 24 is neither a multiple nor a divisor of another seq_len, 16"),
        ([16, 128], "phases.1.seq_len: 128 does not divide the 64 tokens of a step, global_batch_size 4"),
    ],
)
def test_lengths_that_do_not_fit_together(lengths, line):
    with pytest.raises((UserError, UserErrors)) as caught:
        recipe_of({"a": "new"}, ["a: 1"] * 2, samples=[4, 4], lengths=lengths, global_batch_size=BATCH)
    assert line in str(caught.value)


def test_shares_are_exact_in_every_phase():
    mixture = mixture_of(
        {"a": 9000, "b": 900},
        ["a: 0.9, b: 0.1"] * 2,
        samples=[4000, 4000],
        lengths=[16, 64],
        global_batch_size=BATCH,
    )
    for phase, length in enumerate((16, 64)):
        taken = np.diff([[mixture.drawn(phase, i)[name][1] for name in "ab"] for i in (0, 500)], axis=0)
        assert taken.tolist() == [[450 * length, 50 * length]]
