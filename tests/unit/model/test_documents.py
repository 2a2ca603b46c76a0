"""Documents are attended as if alone, by kernels that get their places in place of a mask."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.helpers.model_tiny import INIT, build, recipe, tokens
from trainer.mixer.batch import document_bounds
from trainer.model import documents
from trainer.model.architecture import has_fast_documents

PIECES = 90
LENGTHS = [[5, 1, 10], [16], [2, 14]]
"""Of the documents in each row."""


def alone(query, key, value, begins, longest, scaling):
    """What the card's kernels compute, document by document: `[tokens, heads, head_dim]`."""
    assert [begins[0], begins[-1]] == [0, len(query)]
    assert longest == begins.diff().max()
    parts = []
    for begin, end in pairwise(begins):
        part = (one[begin:end].transpose(0, 1)[None] for one in (query, key, value))
        found = functional.scaled_dot_product_attention(
            *part, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        parts.append(found[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("kind", INIT)
def test_the_model_gives_documents_to_the_kernels_and_gets_what_a_mask_gives(kind, monkeypatch):
    monkeypatch.setattr(documents, "_within", alone)
    causal = build(recipe("model.attention=sdpa", **INIT[kind]), PIECES)
    ids, targets = tokens(3, 16, pieces=PIECES), tokens(3, 16, pieces=PIECES, seed=1)
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
    masked, whole = causal(ids, targets, positions), causal(ids, targets)
    causal.hf.set_attn_implementation(documents.ATTENTION)
    causal.by_documents = True
    bounds, longest = document_bounds(positions.numpy())
    packed = causal(ids, targets, positions, (torch.as_tensor(bounds), longest))
    torch.testing.assert_close(packed, masked, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(causal(ids, targets), whole, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError, match="documents would be mixed"):
        causal(ids, targets, positions)


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_bounds_are_where_documents_begin(lengths):
    longest = max(map(sum, lengths))
    lengths = [[*row, longest - sum(row)] if sum(row) < longest else row for row in lengths]
    positions = np.array([np.concatenate([np.arange(n) for n in row]) for row in lengths])
    bounds, most = document_bounds(positions)
    flat = [length for row in lengths for length in row]
    assert bounds.tolist() == [0, *np.cumsum(flat)]
    assert most == max(flat)


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({}, True),
        ({"head_dim": 100}, False),
        ({"hidden_size": 2400}, False),
        ({"sliding_window": 4096}, False),
        ({"attention_dropout": 0.1}, False),
    ],
)
def test_a_model_that_needs_more_keeps_its_mask(fields, answer):
    config = {"hidden_size": 512, "num_attention_heads": 8, "attention_dropout": 0.0, "sliding_window": None}
    assert has_fast_documents({**config, **fields}) is answer
