"""A micro batch, and its parts for ranks that share samples."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.mixer.batch import MicroBatch, document_places

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
