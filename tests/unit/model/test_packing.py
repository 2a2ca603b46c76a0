"""transformers takes our word for whether rows are packed, and makes the mask that it would have made."""

import pytest
import torch
from transformers import masking_utils

from trainer.model.packing import known_packing


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3]], [[0, 1, 0, 1], [0, 1, 2, 3]]])
def test_what_it_would_have_found_is_what_it_gets(rows):
    positions = torch.tensor(rows)
    looked = masking_utils.find_packed_sequence_indices(positions)
    with known_packing(looked is not None):
        told = masking_utils.find_packed_sequence_indices(positions)
    assert (looked is None) == (told is None)
    assert looked is None or torch.equal(looked, told)


def test_nothing_is_looked_at_once_it_is_known():
    """The meta device has no values that could be read."""
    positions = torch.zeros(2, 8, dtype=torch.int64, device="meta")
    with known_packing(False):
        assert masking_utils.find_packed_sequence_indices(positions) is None
    with known_packing(True):
        assert masking_utils.find_packed_sequence_indices(positions).shape == (2, 8)
