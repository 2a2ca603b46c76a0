"""Measure forgetting over fixed pieces of text, each one paired with the base's loss on it.

A difference of two losses on the same text varies far less than the losses do, so that a few hundred pieces
tell a thousandth of a bit per byte. What is left of the choice of documents is known: its deviation is
that of a ratio estimator over clusters, the pieces of a document being one (Cochran, Sampling Techniques,
chapters 6 and 9A).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

from tokenization.shards.store import TokenStore
from trainer.evaluation.held_out import Scorer
from trainer.mixer.batch import MicroBatch

if TYPE_CHECKING:
    import torch

PerDocument = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Documents:
    """Pieces of a validation set, each within a document: at most `seq_len` tokens and the one after."""

    store: TokenStore
    seq_len: int
    starts: npt.NDArray[np.int64]
    """[pieces] first token."""
    lengths: npt.NDArray[np.int64]
    """[pieces] tokens that are read, at least 2."""
    numbers: npt.NDArray[np.int64]
    """[pieces] the document that the piece is of."""

    @classmethod
    def choose(cls, store: TokenStore, count: int, seq_len: int) -> Documents:
        """Choose up to `count` pieces, evenly over the set and the same ones every time.

        A document that is shorter than a piece is one.
        """
        found: dict[int, tuple[int, int]] = {}
        for place in range(count):
            number = store.document_at(place * store.tokens // count)
            first = store.document_start(number)
            last = store.document_start(number + 1) if number + 1 < store.documents else store.tokens
            start = max(first, min(place * store.tokens // count, last - seq_len - 1))
            if min(last - start, seq_len + 1) > 1:
                found[start] = (min(last - start, seq_len + 1), number)
        columns = np.array([(start, *rest) for start, rest in sorted(found.items())], np.int64)
        return cls(store, seq_len, *columns.reshape(-1, 3).T)

    @property
    def checksum(self) -> str:
        """The checksum of which tokens are measured."""
        places = xxhash.xxh3_128(self.store.fingerprint.encode())
        places.update(self.starts.tobytes())
        places.update(self.lengths.tobytes())
        return places.hexdigest()

    @property
    def utf8_bytes(self) -> PerDocument:
        """[pieces] bytes of the tokens that are scored, by the mean of the whole set."""
        scored = (self.lengths - 1).astype(np.float64)
        return scored * (self.store.utf8_bytes / max(self.store.tokens - 1, 1))

    def rows(self, numbers: range) -> MicroBatch:
        """Read pieces by number, one to a row; those after the last are padding."""
        inputs = np.zeros((len(numbers), self.seq_len), np.int64)
        targets = np.full((len(numbers), self.seq_len), -100, np.int64)
        for row, number in enumerate(numbers):
            if number < len(self.starts):
                ids = self.store.read(int(self.starts[number]), int(self.lengths[number]))
                inputs[row, : len(ids) - 1] = ids[:-1]
                targets[row, : len(ids) - 1] = ids[1:]
        return MicroBatch(inputs, targets, np.zeros(len(numbers), np.int64))


def score_documents(
    scorer: Scorer,
    documents: Documents,
    *,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda alone: alone,
) -> PerDocument:
    """Return the nats of each piece.

    Ranks take batches of them in turn and all make as many forward passes. `total` adds up over the ranks, of
    which only one has scored a piece, so that the sum does not depend on their number.
    """
    import torch

    count = len(documents.starts)
    micro_batch_size = max(1, min(micro_batch_size, -(-count // world_size)))
    found = torch.zeros(count, dtype=torch.float64)
    for turn in range(-(-count // (world_size * micro_batch_size))):
        first = (turn * world_size + rank) * micro_batch_size
        nats, _ = scorer.score(documents.rows(range(first, first + micro_batch_size)))
        found = found.to(nats.device)
        own = max(0, min(count - first, micro_batch_size))
        found[first : first + own] = nats[:own]
    return total(found).cpu().numpy()


def paired_forgetting(nats: PerDocument, base: PerDocument, documents: Documents) -> tuple[float, float]:
    """Return by how many bits per byte the text has become worse, and the standard deviation of it.

    `nats` and `base` are losses of the same pieces. The deviation is that which the choice of documents
    makes, all of them being drawn from the same kind of text; infinite for a single document.
    """
    sizes = documents.utf8_bytes
    bits = (nats - base) / math.log(2)
    whole = math.fsum(sizes)
    forgetting = math.fsum(bits) / whole
    residuals: dict[int, float] = {}
    for number, residual in zip(
        documents.numbers.tolist(), (bits - forgetting * sizes).tolist(), strict=True
    ):
        residuals[number] = residuals.get(number, 0.0) + residual
    count = len(residuals)
    if count < 2:
        return forgetting, math.inf
    spread = math.sqrt(count / (count - 1) * math.fsum(one**2 for one in residuals.values())) / whole
    return forgetting, spread
