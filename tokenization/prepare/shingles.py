"""Fingerprints of documents by the runs of tokens in them: of every run, and of each document by MinHash.

The hash of a run is a polynomial in random values of its tokens, from differences of prefix sums, so that it
takes the same few operations whatever the run's length. MinHash is that of one permutation: the hashes of a
document are divided into bins by their highest bits, and the smallest of each bin is kept (Li, Owen and Zhang
2012, arXiv 1208.1259). The share of bins in which two documents agree estimates their Jaccard similarity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BINS = 128
_BIN_BITS = np.uint64(64 - 7)
ROWS = 2
"""Bins in a band. Documents that agree in both bins of one of the 64 bands are compared: with a similarity of
50 % all but one pair in a hundred million do."""

NO_HASH = np.uint64(2**64 - 1)
"""In a bin without a hash."""

_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)


def mixed(values: Hashes) -> Hashes:
    """Scramble 64-bit values, one to one (the finalizer of splitmix64)."""
    out = values + np.uint64(0x9E3779B97F4A7C15)
    out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return out ^ (out >> np.uint64(31))


class Runs:
    """The tokens of whole documents, or of a part of one, end to end; hashes of the runs within them."""

    def __init__(self, ids: NDArray[np.integer], lengths: NDArray[np.integer]) -> None:
        """`ids` are the tokens [n], `lengths` those of each document [d]."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        self._document = np.repeat(np.arange(len(self.lengths)), self.lengths)
        powers = np.full(len(ids) + 1, _BASE, np.uint64)
        powers[0] = 1
        self._inverse = np.full(len(ids) + 1, _INVERSE, np.uint64)
        self._inverse[0] = 1
        np.cumprod(powers, out=powers)
        np.cumprod(self._inverse, out=self._inverse)
        terms = mixed(ids.astype(np.uint64)) * powers[:-1]
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])

    def whole(self) -> Hashes:
        """Return a hash of all tokens of each document [d]."""
        begins = self._ends - self.lengths
        values = (self._sums[self._ends] - self._sums[begins]) * self._inverse[begins]
        return mixed(values ^ mixed(self.lengths.astype(np.uint64)))

    def of_length(self, length: int) -> tuple[Hashes, NDArray[np.int64]]:
        """Return the hash of every run of `length` tokens within a document, and its document."""
        count = len(self._document) - length + 1
        if count <= 0:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        begins = np.flatnonzero(self._document[:count] == self._document[length - 1 :])
        values = (self._sums[begins + length] - self._sums[begins]) * self._inverse[begins]
        return mixed(values), self._document[begins]

    def signatures(self, length: int) -> Hashes:
        """Return the MinHash of each document's runs of `length` tokens: [d, BINS]; `NO_HASH` where none."""
        hashes, document = self.of_length(length)
        found = np.full(len(self.lengths) * BINS, NO_HASH, np.uint64)
        place = document * BINS + (hashes >> _BIN_BITS).astype(np.int64)
        np.minimum.at(found, place, hashes)
        return found.reshape(-1, BINS)


def band_keys(signatures: Hashes) -> tuple[Hashes, NDArray[np.int64]]:
    """Return a key for each band of each document that has a hash in it, and the document."""
    bands = signatures.reshape(len(signatures), BINS // ROWS, ROWS)
    keys = mixed(np.broadcast_to(np.arange(BINS // ROWS, dtype=np.uint64), bands.shape[:2]))
    for row in range(ROWS):
        keys = mixed(keys ^ bands[:, :, row])
    kept = (bands != NO_HASH).any(axis=2)
    return keys[kept], np.nonzero(kept)[0]


def similarity(ones: Hashes, others: Hashes) -> NDArray[np.float64]:
    """Estimate the Jaccard similarity of pairs of documents from their signatures: [n, BINS] each, [n]."""
    either = ((ones != NO_HASH) | (others != NO_HASH)).sum(axis=1)
    same = ((ones == others) & (ones != NO_HASH)).sum(axis=1)
    return np.asarray(same / np.maximum(either, 1))
