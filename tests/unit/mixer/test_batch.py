"""A micro batch, and its parts for ranks that share samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.mixer.batch import MicroBatch, begins_within, document_places

EOS = 2


@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 20),
    parts=st.integers(1, 6),
    documents=st.booleans(),
    seed=st.integers(0, 99),
)
def test_parts_put_side_by_side_are_the_rows(rows, length, parts, documents, seed):
    ids = np.random.default_rng(seed).integers(0, 5, (rows, length + 1))
    positions = document_places(ids[:, :-1], EOS) if documents else None
    whole = MicroBatch(ids[:, :-1], ids[:, 1:], np.arange(rows), positions)
    cut = [whole.cut(part, parts) for part in range(parts)]
    assert len({part.input_ids.shape for part in cut}) == 1
    joined = {name: np.hstack([getattr(part, name) for part in cut]) for name in ("input_ids", "targets")}
    assert (joined["input_ids"][:, :length] == whole.input_ids).all()
    assert (joined["targets"][:, :length] == whole.targets).all()
    assert (joined["targets"][:, length:] == -100).all()  # padding is scored nowhere
    for part in cut:
        assert (part.source == whole.source).all()
        if documents:  # those of whole rows, as long as the parts together
            assert part.positions.shape == joined["input_ids"].shape
            assert (part.positions[:, :length] == positions).all()
        else:
            assert part.positions is None


@pytest.mark.parametrize(
    ("rows", "packed"), [([[5, 6, 7]], False), ([[5, 2, 7]], True), ([[5, 6, 2]], False)]
)
def test_a_document_that_begins_within_a_row_is_seen(rows, packed):
    ids = np.array([[4, 4, 4], *rows])
    assert begins_within(document_places(ids, eos_id=2)) == packed
    assert not begins_within(None)


@pytest.mark.parametrize("documents", [False, True])
def test_the_largest_batch_scores_all_and_has_documents_if_any_may(documents):
    batch = MicroBatch.largest(3, 8, documents=documents)
    assert batch.input_ids.shape == batch.targets.shape == (3, 8)
    assert (batch.targets >= 0).all()
    assert begins_within(batch.positions) == documents
