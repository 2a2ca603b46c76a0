"""`tokenizer.json` from a SentencePiece model and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.vocabularies import model_of
from tokenization.errors import UserError
from tokenization.tokenizer import encoder, hf_json

pairs = st.lists(st.text(alphabet="abc", min_size=2, max_size=4), unique=True, max_size=12)


def test_splits_of_one_piece_that_stand_apart_have_no_score():
    model = model_of(("ab", 0), ("ba", -1), ("aba", -2), ("a", -3), ("b", -4))
    held = hf_json.from_model(model)
    assert held["model"]["merges"] == [["a", "b"], ["b", "a"], ["a", "ba"], ["ab", "a"]]
    held["model"]["merges"] = [["a", "b"], ["a", "ba"], ["b", "a"], ["ab", "a"]]
    with pytest.raises(UserError, match="before and another after a second piece"):
        hf_json.to_model(held, "x")


@settings(max_examples=200, deadline=None)
@given(merges=pairs, text=st.text(alphabet="abc ", max_size=24))
def test_tokenizer_json_equals_sentencepiece_for_any_vocabulary(merges, text):
    """Pieces of distinct scores in any order, reachable or not."""
    pieces = [*merges, "a", "b", "c", "▁"]
    model = model_of(*((piece, -float(rank)) for rank, piece in enumerate(pieces)))
    assert encoder.disagreements(model, [text]) == []


@settings(max_examples=100, deadline=None)
@given(merges=pairs)
def test_json_and_back_merges_the_same(merges):
    pieces = [*merges, "a", "b", "c", "▁"]
    model = model_of(*((piece, -float(rank)) for rank, piece in enumerate(pieces)))
    held = hf_json.from_model(model)
    assert hf_json.from_model(hf_json.to_model(held, "x")) == held
