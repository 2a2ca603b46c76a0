"""What a batch tells of its rows: whether documents end in them, and the largest that there can be."""

import numpy as np
import pytest

from trainer.mixer.batch import MicroBatch, begins_within, document_places


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
