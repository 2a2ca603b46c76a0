"""Upstream and downstream loss, so that forgetting is a number and not a surprise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from trainer.mixer.batch import MicroBatch


class Store(Protocol):
    """Held-out tokens, as `tokenization.shards` opens them."""

    tokens: int
    utf8_bytes: int
    fingerprint: str

    def read(self, start: int, count: int) -> np.ndarray:
        """Token ids `[start, start + count)`."""
        ...


class Scorer(Protocol):
    """What can score rows: the engine."""

    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats and target tokens of each row."""
        ...


@dataclass(frozen=True)
class Score:
    """Loss on a validation set."""

    nats: float
    tokens: int
    """Target tokens."""
    utf8_bytes: float

    @property
    def nats_per_token(self) -> float:
        """Comparable only within one tokenizer."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Total nats / (ln 2 * UTF-8 bytes): comparable across tokenizers."""
        return self.nats / (math.log(2) * self.utf8_bytes)


@dataclass(frozen=True)
class Baseline:
    """What the base scored on a validation set before the first step: forgetting is measured against it."""

    bits_per_byte: float
    measured_on: dict[str, Any] = field(default_factory=dict)
    """See `measured_on`; empty in checkpoints of the time before it was kept."""

    @classmethod
    def from_json(cls, told: float | Mapping[str, Any]) -> Baseline:
        """Reads what a checkpoint holds: a mapping, or in older ones the bare score."""
        return cls(**told) if isinstance(told, Mapping) else cls(told)

    def unlike(self, now: Mapping[str, Any]) -> list[str]:
        """What differs between the base's score and one that is measured on `now`; empty: comparable."""
        return [f"{name} {old} → {now[name]}" for name, old in self.measured_on.items() if old != now[name]]


def measured_on(store: Store, seq_len: int, max_tokens: int | None) -> dict[str, Any]:
    """What a score depends on beside the model."""
    return {"fingerprint": store.fingerprint, "tokens": _tokens(store, max_tokens), "seq_len": seq_len}


def _tokens(store: Store, max_tokens: int | None) -> int:
    """Tokens of `store` that are read."""
    return min(store.tokens, max_tokens + 1) if max_tokens else store.tokens


def evaluate(
    scorer: Scorer,
    store: Store,
    *,
    seq_len: int,
    micro_batch_size: int,
    max_tokens: int | None,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda alone: alone,
) -> Score:
    """Scores every token of `store` but the first (or the first `max_tokens`, with their share of the bytes).

    The text is cut into windows of `seq_len`, the last one padded; ranks take windows in turn, and all
    make the same number of forward passes, as sharded weights demand. `total` adds up over the ranks.
    """
    tokens = _tokens(store, max_tokens)
    windows = -(-(tokens - 1) // seq_len)
    rounds = -(-windows // (world_size * micro_batch_size))
    sums = torch.zeros(2, dtype=torch.float64)
    for number in range(rounds):
        first = (number * world_size + rank) * micro_batch_size
        rows = _rows(store, range(first, first + micro_batch_size), windows, seq_len, tokens)
        nats, targets = scorer.score(rows)
        sums = sums.to(nats.device) + torch.stack([nats.sum(), targets.sum()])
    sums = total(sums)
    share = (tokens - 1) / max(store.tokens - 1, 1)
    return Score(float(sums[0]), int(sums[1]), store.utf8_bytes * share)


def _rows(store: Store, numbers: range, windows: int, seq_len: int, tokens: int) -> MicroBatch:
    """Windows by number; those past the last are padding."""
    inputs = np.zeros((len(numbers), seq_len), dtype=np.int64)
    targets = np.full((len(numbers), seq_len), -100, dtype=np.int64)
    for row, window in enumerate(numbers):
        if window >= windows:
            continue
        start = window * seq_len
        ids = store.read(start, min(seq_len + 1, tokens - start))
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
    return MicroBatch(inputs, targets, np.zeros(len(numbers), dtype=np.int64))
