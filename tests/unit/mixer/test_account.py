"""What a plan takes from each source, and any window of a run."""

from fractions import Fraction

import pytest

from tests.helpers.mixer_recipes import begun, mixture_of
from tokenization.errors import UserError
from trainer.mixer.simulate import SampleRow, account, sample_rows, source_shares, target_shares


@pytest.fixture
def mixture():
    return mixture_of(
        {"zh": 100, "en": 16},
        ["replay_ratio: 1/4", ["zh: 1", "from: 160, zh: 1/2, en: 1/2"]],
        samples=[40, 20],
        roles={"en": "replay"},
        options={"en": "max_epochs: 2, order: sequential"},
    )


def test_every_source_at_the_end_of_every_phase(mixture):
    told = [
        (row.phase, row.source, row.share, row.phase_tokens, row.tokens, row.samples, row.epochs)
        for row in account(mixture)
    ]
    assert told == [
        ("phase0", "zh", Fraction(3, 4), 30 * 16, 30 * 16, 30, 0.30),
        ("phase0", "en", Fraction(1, 4), 10 * 16, 10 * 16, 10, 10 / 16),
        # ten samples of zh alone, then ten half and half
        ("phase1", "zh", Fraction(3, 4), 15 * 16, 45 * 16, 45, 0.45),
        ("phase1", "en", Fraction(1, 4), 5 * 16, 15 * 16, 15, 15 / 16),
    ]
    assert [row.role for row in account(mixture)] == ["new", "replay"] * 2
    assert [row.max_epochs for row in account(mixture)] == [None, Fraction(2)] * 2


def test_a_phase_that_is_over_is_told_as_it_was_recorded():
    mixture = mixture_of(
        {"a": 90, "b": 90}, ["b: 1", "a: 1"], samples=[30, 10], past=[begun(30), begun(0, {"a": 32})]
    )
    told = [(row.phase, row.source, row.phase_tokens // 16, row.samples) for row in account(mixture)]
    assert told == [
        ("phase0", "a", 32, 32),
        ("phase0", "b", 0, 0),
        ("phase1", "a", 10, 42),
        ("phase1", "b", 0, 0),
    ]


def test_targets_follow_the_segments(mixture):
    assert target_shares(mixture, 1, 0, 10) == {"zh": 1, "en": 0}
    assert target_shares(mixture, 1, 8, 12) == {"zh": Fraction(3, 4), "en": Fraction(1, 4)}


def test_a_window_over_a_phase_boundary_goes_on_counting(mixture):
    window = list(sample_rows(mixture, 36, 44))
    assert [row.i for row in window] == list(range(36, 44))
    assert [row.phase for row in window] == ["phase0"] * 4 + ["phase1"] * 4
    assert window[3] == SampleRow(39, "phase0", "en", 9, 0)  # the tenth of the replayed source, in order
    assert [row.source for row in window[4:]] == ["zh"] * 4


def test_shares_of_a_window_are_those_of_its_rows(mixture):
    for start, stop in ((0, 60), (3, 17), (30, 55), (41, 43), (55, 57)):
        window = list(sample_rows(mixture, start, stop))
        for share in source_shares(mixture, start, stop):
            drawn = [row for row in window if row.source == share.source]
            assert share.samples == len(drawn)
            assert share.share == len(drawn) / (stop - start)
            assert share.off_by == pytest.approx(len(drawn) - share.target * (stop - start))
    whole = {share.source: share for share in source_shares(mixture, 0, 60)}
    assert whole["en"].target == Fraction(1, 4)
    assert whole["en"].off_by == 0
    assert whole["en"].coverage == whole["en"].epochs == 15 / 16


def test_coverage_ends_at_the_whole():
    mixture = mixture_of({"a": 10}, ["a: 1"], samples=[25])
    [share] = source_shares(mixture, 0, 25)
    assert (share.coverage, share.epochs) == (1.0, 2.5)


@pytest.mark.parametrize("window", [(-1, 5), (5, 5), (0, 61)])
def test_a_window_outside_the_run_is_refused(mixture, window):
    with pytest.raises(UserError, match=r"is not a window A:B of the run's samples; use 0 <= A < B <= 60"):
        list(sample_rows(mixture, *window))
