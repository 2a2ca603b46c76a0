"""A step that does not fit into memory is noticed before the first one."""

import pytest
import torch

from tests.helpers import scheduler_runs
from tokenization.errors import UserError
from trainer.engine.layout import Layout
from trainer.run import fitting


class Card:
    """An engine on a device that holds so many samples."""

    def __init__(self, holds, tried):
        self.holds, self.tried, self.closed = holds, tried, False

    def rehearse(self, batch):
        self.tried.append(batch.input_ids.shape)
        if len(batch.input_ids) > self.holds:
            raise torch.OutOfMemoryError

    def close(self):
        self.closed = True


@pytest.fixture
def fit(monkeypatch):
    """Opens an engine for a micro batch of 12 in a global batch of 24; what was tried, and what fitted."""
    monkeypatch.setattr(fitting.collectives, "all_gather", lambda value: [value])
    monkeypatch.setattr(fitting.collectives, "device", lambda: torch.device("cpu"))

    def fit(holds, *edits):
        tried, opened = [], []

        def open_engine(layout):
            if holds < 0:
                raise torch.OutOfMemoryError
            opened.append(Card(holds, tried))
            return opened[-1]

        recipe = scheduler_runs.recipe(edits=edits)
        try:
            engine, layout = fitting.open_fitting(recipe, 0, Layout(1, 12, 2), open_engine)
        finally:
            assert [one.closed for one in opened] == [True] * (len(opened) - 1) + [holds < 1] * bool(opened)
        assert engine is opened[-1]
        return tried, layout

    return fit


def test_what_fits_is_taken_as_it_is(fit):
    assert fit(12, "micro_batch_size=12") == ([(12, 10)], Layout(1, 12, 2))


def test_auto_halves_until_it_fits_and_the_global_batch_stays(fit, log_lines):
    tried, layout = fit(4, "micro_batch_size=auto")
    assert [shape[0] for shape in tried] == [12, 6, 3]
    assert layout == Layout(1, 3, 8)
    assert "ran out of memory in a trial step (micro batch 12" in log_lines[0]
    assert "micro_batch_size: auto goes from 12 to 6, with 4 micro batches a step" in log_lines[0]


@pytest.mark.parametrize("holds", [0, -1])
def test_what_cannot_fit_is_one_line_with_the_settings_that_need_less(fit, holds):
    with pytest.raises(
        UserError, match=r"micro_batch_size: 1 is too much: .*activation_checkpointing: full.*ZeRO"
    ):
        fit(holds, "micro_batch_size=auto")


def test_a_size_that_was_chosen_is_not_changed_in_silence(fit, monkeypatch):
    monkeypatch.setattr(Card, "close", lambda self: setattr(self, "closed", self.holds < 1))
    with pytest.raises(
        UserError, match=r"micro_batch_size: 12 is too much: .*micro_batch_size: 6 \(or auto\)"
    ):
        fit(0, "micro_batch_size=12")
