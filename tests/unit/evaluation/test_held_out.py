"""Every token of a validation set counts once, whoever scores it, and losses are told per byte."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenization.tokenizer.piece_bytes import BYTE_CLASSES, ByteClasses
from trainer.evaluation.held_out import Baseline, Score, evaluate, measured_on


class Tokens:
    fingerprint = "a"

    def __init__(self, tokens, utf8_bytes=1000):
        self.ids = np.arange(tokens)
        self.tokens, self.utf8_bytes = tokens, utf8_bytes

    def read(self, start, count):
        assert 0 <= start <= start + count <= self.tokens
        return self.ids[start : start + count]


class Scorer:
    """A token's loss is its own number; notes what it was shown."""

    def __init__(self):
        self.targets, self.rounds, self.positions = [], 0, 0

    def score(self, micro):
        self.rounds += 1
        self.positions += micro.input_ids.size
        counted = micro.targets >= 0
        assert (micro.targets[counted] == micro.input_ids[counted] + 1).all()
        self.targets += micro.targets[counted].tolist()
        nats = np.where(counted, micro.targets, 0).sum(axis=1)
        return torch.tensor(nats, dtype=torch.float64), torch.tensor(counted.sum(axis=1), dtype=torch.float64)


@given(
    tokens=st.integers(2, 300),
    seq_len=st.integers(1, 40),
    micro_batch_size=st.integers(1, 5),
    world_size=st.integers(1, 9),
    max_tokens=st.none() | st.integers(1, 400),
)
def test_every_token_once_over_all_ranks(tokens, seq_len, micro_batch_size, world_size, max_tokens):
    scorers = [Scorer() for _ in range(world_size)]
    scores = [
        evaluate(
            scorer,
            Tokens(tokens),
            seq_len=seq_len,
            micro_batch_size=micro_batch_size,
            max_tokens=max_tokens,
            rank=rank,
            world_size=world_size,
        )
        for rank, scorer in enumerate(scorers)
    ]
    last = tokens if max_tokens is None else min(tokens, max_tokens + 1)
    assert sorted(target for scorer in scorers for target in scorer.targets) == list(range(1, last))
    assert sum(score.tokens for score in scores) == last - 1
    assert len({scorer.rounds for scorer in scorers}) == 1  # sharded weights need all ranks in every forward


def test_bits_per_byte_by_hand():
    # 300 nats on 100 tokens of 250 bytes: 300 / (0.693147 * 250) = 1.731 bits per byte.
    score = Score(nats=300.0, tokens=100, utf8_bytes=250)
    assert score.nats_per_token == 3.0
    assert score.bits_per_byte == pytest.approx(300 / (math.log(2) * 250))
    assert score.bits_per_byte == pytest.approx(1.7312, abs=1e-4)


class TokenScorer:
    """A token's loss is a tenth of its number plus one, in fp32, whole or by row."""

    def score_tokens(self, micro):
        return torch.tensor(np.where(micro.targets >= 0, micro.targets / 10 + 1, 0), dtype=torch.float32)

    def score(self, micro):
        counted = torch.tensor((micro.targets >= 0).sum(axis=1), dtype=torch.float64)
        return self.score_tokens(micro).sum(dim=1).double(), counted


PIECES = [b"", b"the", b" 2", "中文".encode(), "中".encode()[:1], "中".encode()[1:], b"a1"]
"""Token 0 ends a document; 4 and 5 make a character."""


class Text:
    fingerprint = "a"
    ids = np.array([1, 2, 3, 4, 5, 6, 0, 1, 3])
    tokens, utf8_bytes = len(ids), 40

    def read(self, start, count):
        return self.ids[start : start + count]


@pytest.mark.parametrize("seq_len", [3, 4, 100])  # the character is cut by a window's end, or not
@pytest.mark.parametrize("world_size", [1, 2])
def test_nats_are_divided_among_the_classes_of_their_bytes(seq_len, world_size):
    options = {"seq_len": seq_len, "micro_batch_size": 2, "max_tokens": None, "world_size": world_size}
    ranks = range(world_size)
    scores = [
        evaluate(TokenScorer(), Text(), **options, rank=rank, classes=ByteClasses(PIECES)) for rank in ranks
    ]
    found = {
        kind: [sum(score.by_class[kind][place] for score in scores) for place in (0, 1)]
        for kind in BYTE_CLASSES
    }
    # Targets: " 2" (1.2 nats), 中文 (1.3), 中's bytes (1.4 and 1.5), "a1" (1.6), an end, "the" (1.1), 中文.
    assert found["cjk"] == pytest.approx([1.3 + 1.4 + 1.5 + 1.3, 6 + 1 + 2 + 6])
    assert found["latin"] == pytest.approx([1.6 / 2 + 1.1, 1 + 3])
    assert found["digits"] == pytest.approx([1.2 / 2 + 1.6 / 2, 1 + 1])
    assert found["other"] == pytest.approx([1.2 / 2, 1])


@pytest.mark.parametrize("max_tokens", [None, 5])
def test_a_score_is_the_same_number_with_classes_and_without(max_tokens):
    options = {"seq_len": 4, "micro_batch_size": 3, "max_tokens": max_tokens}
    plain = evaluate(TokenScorer(), Text(), **options)
    apart = evaluate(TokenScorer(), Text(), **options, classes=ByteClasses(PIECES))
    assert (apart.nats, apart.tokens, apart.bits_per_byte) == (plain.nats, plain.tokens, plain.bits_per_byte)
    assert plain.class_bits_per_byte == {}


def test_a_class_of_hardly_any_bytes_has_no_score():
    by_class = {"cjk": (math.log(2) * 990, 990), "latin": (5.0, 9), "digits": (0.0, 0), "other": (0.0, 1)}
    score = Score(1.0, 1, 1000, {}, by_class)
    assert score.class_bits_per_byte == {"cjk": pytest.approx(1.0)}


def test_a_part_of_the_tokens_counts_for_its_part_of_the_bytes():
    score = evaluate(Scorer(), Tokens(101, 400), seq_len=10, micro_batch_size=2, max_tokens=25)
    assert score.tokens == 25
    assert score.utf8_bytes == pytest.approx(100)


@given(
    tokens=st.integers(2, 300),
    seq_len=st.integers(1, 5000),
    micro_batch_size=st.integers(1, 8),
    max_tokens=st.none() | st.integers(1, 400),
)
def test_a_small_set_is_not_padded_to_long_windows_or_many_rows(
    tokens, seq_len, micro_batch_size, max_tokens
):
    scorer = Scorer()
    options = {"seq_len": seq_len, "micro_batch_size": micro_batch_size, "max_tokens": max_tokens}
    score = evaluate(scorer, Tokens(tokens), **options)
    rows = -(-score.tokens // seq_len)
    assert scorer.positions <= min(seq_len, score.tokens) * (rows + micro_batch_size - 1)
    if rows <= micro_batch_size:
        assert scorer.positions == min(seq_len, score.tokens) * rows


def test_a_score_tells_what_it_is_measured_on():
    score = evaluate(Scorer(), Tokens(101), seq_len=500, micro_batch_size=2, max_tokens=25)
    assert score.measured_on == measured_on(Tokens(101), 500, 25)
    assert score.measured_on == {
        "fingerprint": "a",
        "tokens": 26,
        "seq_len": 500,
        "document_mask": "none",
    }


@pytest.mark.parametrize(
    ("max_tokens", "seq_len", "fingerprint", "told"),
    [
        (None, 10, "a", []),
        (500, 10, "a", []),  # more than there is
        (25, 10, "a", ["tokens 101 → 26"]),
        (None, 20, "a", ["seq_len 10 → 20"]),
        (None, 10, "b", ["fingerprint a → b"]),
    ],
)
def test_a_baseline_is_comparable_to_what_it_was_measured_on(max_tokens, seq_len, fingerprint, told):
    base = Baseline(2.0, measured_on(Tokens(101), 10, None))
    store = Tokens(101)
    store.fingerprint = fingerprint
    assert base.unlike(measured_on(store, seq_len, max_tokens)) == told


def test_a_bare_score_of_an_older_checkpoint_is_still_read():
    assert Baseline.from_json(2.0).unlike(measured_on(Tokens(9), 10, None)) == []
    kept = Baseline(2.0, {"seq_len": 10})
    assert Baseline.from_json({"bits_per_byte": 2.0, "measured_on": {"seq_len": 10}}) == kept
