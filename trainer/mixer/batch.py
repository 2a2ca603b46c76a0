"""The numpy arrays of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.mixer.permutation import Ints


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    input_ids: Ints
    """[micro_batch_size, seq_len]"""
    targets: Ints
    """[micro_batch_size, seq_len]: each position's successor. A packed stream has no padding, so every
    position counts in the loss."""
    source: Ints
    """[micro_batch_size]: number of the row's source in `Mixture.names`."""
    positions: Ints | None
    """[micro_batch_size, seq_len]: place within the document, or since the row's start; None: no mask."""
    documents: NDArray[np.int32] | None
    """[micro_batch_size, seq_len]: number of the document within the row, from 0; None: no mask."""


def document_places(tokens: NDArray[np.int32], eos_id: int) -> tuple[Ints, NDArray[np.int32]]:
    """For each token of each row ([rows, length]): its place within its document, and the document's number.

    A document ends with its EOS. The one that a row begins with counts from the row's start, since what
    precedes it there cannot be seen.
    """
    rows, length = tokens.shape
    begins = np.ones((rows, length), bool)
    np.equal(tokens[:, :-1], eos_id, out=begins[:, 1:])
    first = np.flatnonzero(begins)  # where documents begin, rows end to end
    lengths = np.diff(first, append=rows * length)
    number = np.arange(len(first)) - np.searchsorted(first, first // length * length)
    place = np.arange(rows * length)
    place -= np.repeat(first, lengths)
    documents = np.repeat(number.astype(np.int32), lengths)
    return place.reshape(rows, length), documents.reshape(rows, length)
