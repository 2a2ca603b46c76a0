"""Rows are scored and continued as one by one on one rank, whatever the ranks and the size of a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.model_tiny import build, recipe
from trainer.evaluation.answers import Row, Sharing, answer_rows, continue_rows

PIECES = 90


class Model:
    """A tiny model in place of the engine; it notes the shape of each forward pass."""

    def __init__(self):
        torch.manual_seed(0)
        self.causal, self.passes = build(recipe(), PIECES).eval(), []

    @torch.no_grad()
    def answers(self, ids, targets, places):
        self.passes.append(ids.shape)
        best, nats = self.causal(*map(torch.from_numpy, (ids, targets)), next_at=torch.from_numpy(places))
        return best.numpy(), nats.double().numpy()

    @torch.no_grad()
    def score(self, micro):
        self.passes.append(micro.input_ids.shape)
        _, nats, targets = self.causal(torch.from_numpy(micro.input_ids), torch.from_numpy(micro.targets))
        return nats, targets


MODEL = Model()


@torch.no_grad()
def reference(row):
    """Nats of the scored tokens, and whether each is the most likely one, from transformers' own logits."""
    ids = torch.tensor(row.ids)
    logits = MODEL.causal.hf(ids[None, :-1]).logits[0, -row.scored :, :PIECES]
    goals = ids[-row.scored :]
    nats = torch.nn.functional.cross_entropy(logits, goals, reduction="sum")
    return float(nats), float((logits.argmax(dim=1) == goals).all())


def written(ids, more):
    """What transformers' own logits continue a row with."""
    ids = list(ids)
    for _ in range(more):
        ids.append(int(MODEL.causal.hf(torch.tensor([ids])).logits[0, -1, :PIECES].argmax()))
    return ids[-more:]


def over_ranks(ask, ranks):
    """The sum over the ranks of what each finds, and how many forward passes each makes."""
    found, passes, looks = 0, [], []
    for rank in range(ranks):
        MODEL.passes, looked = [], []
        found = found + ask(Sharing(rank, ranks, look=lambda looked=looked: looked.append(1)))
        passes.append(len(MODEL.passes))
        looks.append(len(looked))
    assert looks == passes
    return found, passes


ids = st.lists(st.integers(3, PIECES - 1), min_size=2, max_size=40)


@settings(deadline=None, max_examples=15)
@given(st.lists(ids, max_size=7), st.integers(1, 3), st.integers(1, 200), st.booleans(), st.data())
def test_rows_are_scored_as_one_by_one(texts, ranks, tokens, greedy, data):
    rows = [Row(text, data.draw(st.integers(1, len(text) - 1))) for text in texts]
    found, passes = over_ranks(
        lambda sharing: answer_rows(MODEL, rows, tokens, greedy=greedy, sharing=sharing), ranks
    )
    assert len(set(passes)) == 1  # sharded weights are gathered in each forward pass
    expected = np.array([reference(row) for row in rows]).reshape(-1, 2)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-4)
    assert found[:, 1].tolist() == (expected[:, 1] if greedy else 0 * expected[:, 1]).tolist()


@settings(deadline=None, max_examples=6)
@given(st.lists(ids, min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 200))
def test_rows_are_continued_as_one_by_one(rows, ranks, tokens):
    found, passes = over_ranks(lambda sharing: continue_rows(MODEL, rows, 3, tokens, sharing=sharing), ranks)
    assert len(set(passes)) == 1
    assert found.tolist() == [written(row, 3) for row in rows]


def test_a_token_that_the_model_would_write_is_greedy():
    begin = [5, 6, 7]
    own = written(begin, 2)
    other = [own[0], (own[1] + 1) % PIECES]
    rows = [Row([*begin, *own], 2), Row([*begin, *other], 2)]
    assert answer_rows(MODEL, rows, 64, greedy=True)[:, 1].tolist() == [1, 0]


def test_a_forward_pass_has_no_more_tokens_than_it_may():
    MODEL.passes = []
    answer_rows(MODEL, [Row(list(range(3, 30)), 1)] * 5, 64, greedy=True)
    assert MODEL.passes == [(2, 32), (2, 32), (1, 32)]


@pytest.mark.parametrize("greedy", [True, False])
def test_no_rows_need_no_forward_pass(greedy):
    MODEL.passes = []
    assert answer_rows(MODEL, [], 64, greedy=greedy).shape == (0, 2)
    assert MODEL.passes == []
