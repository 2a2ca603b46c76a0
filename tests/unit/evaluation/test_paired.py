"""Forgetting over fixed documents: paired with the base, and the same on any number of ranks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.paired import Documents, paired_forgetting, score_documents


class Store:
    """Documents of these lengths; a token's id is its place."""

    fingerprint = "a"

    def __init__(self, lengths):
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.tokens, self.documents = int(self.starts[-1]), len(lengths)
        self.utf8_bytes = 4 * (self.tokens - 1)

    def document_start(self, document):
        return int(self.starts[document])

    def read(self, start, count):
        return np.arange(start, start + count)


class Scorer:
    """A row's loss is the sum of its targets."""

    def score(self, micro):
        nats = np.where(micro.targets >= 0, micro.targets, 0).sum(axis=1)
        return torch.tensor(nats, dtype=torch.float64), torch.tensor((micro.targets >= 0).sum(axis=1))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=40),
    count=st.integers(1, 50),
    seq_len=st.integers(1, 32),
    micro=st.integers(1, 5),
    ranks=st.integers(1, 7),
)
def test_each_document_is_scored_once_whatever_the_ranks(lengths, count, seq_len, micro, ranks):
    documents = Documents.choose(Store(lengths), count, seq_len)
    parts = [
        score_documents(Scorer(), documents, micro_batch_size=micro, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    expected = [
        sum(range(start + 1, start + length))
        for start, length in zip(documents.starts.tolist(), documents.lengths.tolist(), strict=True)
    ]
    assert sum(parts).tolist() == expected
    assert all(2 <= length <= seq_len + 1 for length in documents.lengths)
    assert Documents.choose(Store(lengths), count, seq_len).checksum == documents.checksum


def test_the_documents_are_spread_over_the_whole_set():
    documents = Documents.choose(Store([10] * 100), 4, 32)
    assert documents.starts.tolist() == [0, 250, 500, 750]
    assert documents.checksum != Documents.choose(Store([10] * 100), 5, 32).checksum


def test_forgetting_is_bits_per_byte_and_its_deviation_is_that_of_other_choices():
    rng = np.random.default_rng(3)
    lengths = rng.integers(20, 200, 4000)
    everything = Documents.choose(Store(lengths), 4000, 500)
    base = everything.utf8_bytes * rng.normal(0.7, 0.2, 4000)
    nats = base + everything.utf8_bytes * rng.normal(0.03, 0.02, 4000)
    truth, _ = paired_forgetting(nats, base, everything)
    assert truth == pytest.approx(0.03 / math.log(2), rel=0.05)
    found = []
    for chosen in np.array_split(rng.permutation(4000), 40):
        part = Documents(everything.store, 500, everything.starts[chosen], everything.lengths[chosen])
        found.append(paired_forgetting(nats[chosen], base[chosen], part))
    values, spreads = np.array(found).T
    assert spreads.mean() == pytest.approx(values.std(), rel=0.3)
    # Pairing is what makes it small: unpaired losses vary ten times as much.
    assert spreads.mean() < 0.1 * (base / everything.utf8_bytes).std() / math.log(2)
