"""Documents drawn with a cache are those that the model itself would be asked for, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.model_tiny import INIT, build, recipe
from trainer.model.sampling import LEAST_LOOP, LONGEST_PERIOD, SamplingRules, is_loop, sample_documents

PIECES, EOS, BARRED = 40, 2, 5


def rules(**changes) -> SamplingRules:
    allowed = [index not in (0, 1, BARRED) for index in range(PIECES)]
    fields = {"temperature": 0.7, "longest": 30, "start_id": 1, "eos_id": EOS, "allowed": allowed}
    return SamplingRules(**fields | changes)


def without_cache(hf, how: SamplingRules, count: int, seed: int) -> list[list[int]]:
    """The same draws, each from a forward pass over the whole document so far."""
    generator = torch.Generator().manual_seed(seed)
    written = {row: [how.start_id] for row in range(count)}
    rows = list(range(count))
    for _ in range(how.longest):
        going = [row for row in rows if written[row][-1] != EOS]
        if not going:
            break
        if 2 * len(going) <= len(rows):
            rows = going
        logits = [hf(input_ids=torch.tensor([written[row]]), use_cache=False).logits[0, -1] for row in rows]
        logits = torch.stack(logits)[:, : len(how.allowed)] / how.temperature
        logits[:, ~torch.tensor(how.allowed)] = -torch.inf
        drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0].tolist()
        for row, token in zip(rows, drawn, strict=True):
            written[row] += [token] if written[row][-1] != EOS else [EOS]
    return [[token for token in ids[1:] if token != EOS] for ids in written.values()]


@pytest.mark.parametrize("kind", INIT)
def test_a_cache_changes_nothing(kind):
    hf = build(recipe(**INIT[kind], initializer_range=0.5), PIECES).hf.eval()
    for seed in range(3):
        found = sample_documents(hf, rules(), 6, seed)
        with torch.no_grad():
            assert found == without_cache(hf, rules(), 6, seed)
        assert all(token not in (0, 1, EOS, BARRED) for ids in found for token in ids)


def test_padding_rows_and_barred_pieces_are_never_drawn():
    hf = build(recipe(vocab_size=64), PIECES).hf.eval()
    (ids,) = sample_documents(hf, rules(longest=500, eos_id=39, temperature=5.0), 1, 0)
    assert len(ids) > 30
    assert max(ids) < PIECES
    assert not {0, 1, BARRED} & set(ids)


@given(
    st.lists(st.integers(0, 500), max_size=40),
    st.lists(st.integers(501, 999), min_size=1, max_size=LONGEST_PERIOD, unique=True),
    st.lists(st.integers(0, 500), max_size=40),
)
def test_a_passage_repeated_over_and_over_is_a_loop(before, passage, after):
    copies = 1 + -(-max(3 * len(passage), LEAST_LOOP) // len(passage))
    assert is_loop([*before, *passage * copies, *after])


@given(st.lists(st.integers(0, 10**6), max_size=300, unique=True))
def test_text_without_a_repetition_is_not_a_loop(ids):
    assert not is_loop(ids)
    assert not is_loop([*ids, *ids])
