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

    def document_at(self, token):
        return int(np.searchsorted(self.starts, token, side="right")) - 1

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


def test_the_pieces_are_spread_over_the_whole_set_and_each_is_of_one_document():
    short = Documents.choose(Store([10] * 100), 4, 32)
    assert short.starts.tolist() == [0, 250, 500, 750]
    assert short.lengths.tolist() == [10] * 4
    assert short.checksum != Documents.choose(Store([10] * 100), 5, 32).checksum
    long = Documents.choose(Store([100, 300]), 8, 32)
    assert long.starts.tolist() == [0, 50, 100, 150, 200, 250, 300, 350]
    assert long.numbers.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    at_the_end = Documents.choose(Store([60, 300]), 8, 32)
    assert at_the_end.starts.tolist()[:2] == [0, 27]  # a whole piece before the document's end
    assert Documents.choose(Store([10, 10]), 50, 32).starts.tolist() == [0, 10]


def test_forgetting_is_bits_per_byte_and_its_deviation_is_that_of_other_choices():
    rng = np.random.default_rng(3)
    lengths = rng.integers(20, 200, 4000)
    everything = Documents.choose(Store(lengths), 20_000, 500)
    assert len(everything.starts) > 3000
    count = len(everything.starts)
    base = everything.utf8_bytes * rng.normal(0.7, 0.2, count)
    nats = base + everything.utf8_bytes * rng.normal(0.03, 0.02, count)
    truth, _ = paired_forgetting(nats, base, everything)
    assert truth == pytest.approx(0.03 / math.log(2), rel=0.05)
    columns = (everything.starts, everything.lengths, everything.numbers)
    found = []
    for chosen in np.array_split(rng.permutation(count), 40):
        part = Documents(everything.store, 500, *(column[chosen] for column in columns))
        found.append(paired_forgetting(nats[chosen], base[chosen], part))
    values, spreads = np.array(found).T
    assert spreads.mean() == pytest.approx(values.std(), rel=0.3)
    # Pairing is what makes it small: unpaired losses vary ten times as much.
    assert spreads.mean() < 0.1 * (base / everything.utf8_bytes).std() / math.log(2)


def test_pieces_of_one_document_are_one_observation():
    documents = Documents.choose(Store([1000] * 6), 60, 50)
    base = np.zeros(60)
    nats = documents.utf8_bytes * documents.numbers  # documents differ, their pieces do not
    alone = Documents.choose(Store([1000] * 6), 6, 50)
    spread = paired_forgetting(nats, base, documents)[1]
    assert spread == pytest.approx(paired_forgetting(alone.utf8_bytes * alone.numbers, base[:6], alone)[1])
    assert paired_forgetting(nats[:10], base[:10], Documents.choose(Store([1000]), 10, 50))[1] == math.inf
