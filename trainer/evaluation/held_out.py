"""Score held-out text of the old and of the new distribution: what is forgotten, and what is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tokenization.shards.store import TokenStore
from tokenization.tokenizer.piece_bytes import BYTE_CLASSES, ByteClasses
from trainer.mixer.batch import MicroBatch, document_places

if TYPE_CHECKING:  # a plan reads what a run has measured, without torch
    import torch


class Scorer(Protocol):
    """The engine during a run, or a model alone."""

    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nats and the target tokens of each row: [micro_batch_size] each."""
        ...

    def score_tokens(self, micro: MicroBatch) -> torch.Tensor:
        """Return the nats of each target as computed, [micro_batch_size, seq_len]; asked for with classes."""
        ...


@dataclass(frozen=True)
class Score:
    """The loss on a validation set."""

    nats: float
    tokens: int
    """Target tokens."""
    utf8_bytes: float
    measured_on: dict[str, Any] = field(default_factory=dict)
    """See the function `measured_on`."""
    by_class: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Nats and bytes of each class of bytes, see `BYTE_CLASSES`; the ends of documents are in none."""

    @property
    def class_bits_per_byte(self) -> dict[str, float]:
        """Bits per byte of each class that has a hundredth of the bytes or more."""
        least = max(1.0, sum(count for _, count in self.by_class.values()) / 100)
        return {
            name: nats / (math.log(2) * count)
            for name, (nats, count) in self.by_class.items()
            if count >= least
        }

    @property
    def nats_per_token(self) -> float:
        """Mean loss per token; comparable only for one tokenizer."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Total nats / (ln 2 * UTF-8 bytes): comparable across tokenizers."""
        return self.nats / (math.log(2) * self.utf8_bytes)


@dataclass(frozen=True)
class Baseline:
    """The base's score on a validation set, before the first step: forgetting is measured against it."""

    bits_per_byte: float
    measured_on: dict[str, Any] = field(default_factory=dict)
    """See the function `measured_on`; empty in old checkpoints, which did not keep it."""

    @classmethod
    def from_json(cls, tree: float | Mapping[str, Any]) -> Baseline:
        """Read what a checkpoint holds: a mapping, or in old ones the bare score."""
        return cls(**tree) if isinstance(tree, Mapping) else cls(tree)

    def unlike(self, now: Mapping[str, Any]) -> list[str]:
        """List what differs from a score that is measured on `now`; if nothing does, they are comparable."""
        kept = {"document_mask": "none", **self.measured_on} if self.measured_on else {}
        return [f"{name} {old} → {now[name]}" for name, old in kept.items() if old != now[name]]


def measured_on(
    store: TokenStore, seq_len: int, max_tokens: int | None, document_mask: str = "none"
) -> dict[str, Any]:
    """Return what a score depends on, apart from the model."""
    return {
        "fingerprint": store.fingerprint,
        "tokens": _tokens(store, max_tokens),
        "seq_len": seq_len,
        "document_mask": document_mask,
    }


def _tokens(store: TokenStore, max_tokens: int | None) -> int:
    """Return how many tokens of `store` are read."""
    return min(store.tokens, max_tokens + 1) if max_tokens else store.tokens


def evaluate(
    scorer: Scorer,
    store: TokenStore,
    *,
    seq_len: int,
    micro_batch_size: int,
    max_tokens: int | None,
    document_mask: str = "none",
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda alone: alone,
    classes: ByteClasses | None = None,
) -> Score:
    """Score every token of `store` but the first (or `max_tokens` of them, with their share of the bytes).

    With `document_mask: causal_per_document` no token sees another document, as in training with it.

    The text is cut into windows of `seq_len`, or of all its tokens where it has fewer; the last one is
    padded. A forward pass takes at most `micro_batch_size` of them, and no more than there are for a rank.
    Ranks take windows in turn, and all make the same number of forward passes, as sharded weights require.
    `total` sums over the ranks. With `classes` the score is taken apart by the class of bytes, too: the nats
    of a token are divided among its bytes.
    """
    import torch

    tokens = _tokens(store, max_tokens)
    width = max(1, min(seq_len, tokens - 1))
    windows = -(-(tokens - 1) // width)
    micro_batch_size = max(1, min(micro_batch_size, -(-windows // world_size)))
    rounds = -(-windows // (world_size * micro_batch_size))
    sums = torch.zeros(2 + 2 * len(BYTE_CLASSES) * (classes is not None), dtype=torch.float64)
    for number in range(rounds):
        first = (number * world_size + rank) * micro_batch_size
        rows = _rows(store, range(first, first + micro_batch_size), windows, width, tokens)
        if document_mask == "causal_per_document":
            rows = replace(rows, positions=document_places(rows.input_ids, store.eos_id))
        if classes is None:
            nats, targets = scorer.score(rows)
            found = torch.stack([nats.sum(), targets.sum()])
        else:
            found = _by_class(scorer.score_tokens(rows), rows, classes)
        sums = sums.to(found.device) + found
    sums = total(sums)
    share = (tokens - 1) / max(store.tokens - 1, 1)
    measured = measured_on(store, seq_len, max_tokens, document_mask)
    numbers = sums.tolist()
    by_class = {
        name: (nats, int(count))
        for name, nats, count in zip(BYTE_CLASSES, numbers[2::2], numbers[3::2], strict=False)
    }
    return Score(numbers[0], int(numbers[1]), store.utf8_bytes * share, measured, by_class)


def _by_class(nats: torch.Tensor, rows: MicroBatch, classes: ByteClasses) -> torch.Tensor:
    """Sum up a batch: nats and targets in all, then nats and bytes of each class.

    `nats` are those of each target, [micro_batch_size, seq_len].
    """
    import torch

    counted = rows.targets >= 0
    counts = np.zeros((*rows.targets.shape, len(BYTE_CLASSES)))
    for row, (first, targets) in enumerate(zip(rows.input_ids[:, 0], rows.targets, strict=True)):
        ids = np.concatenate([[first], targets[counted[row]]])  # the first ends a character, perhaps
        counts[row, : len(ids) - 1] = classes.count(ids)[1:]
    shares = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    of_class = torch.einsum("rt,rtc->c", nats.double(), torch.from_numpy(shares).to(nats.device))
    bytes_of = torch.from_numpy(counts.sum(axis=(0, 1))).to(nats.device)
    # Summed as `Scorer.score` does, so that a score is the same number with classes and without.
    whole = torch.stack([nats.sum(dim=1).double().sum(), torch.tensor(float(counted.sum())).to(of_class)])
    return torch.cat([whole, torch.stack([of_class, bytes_of], dim=1).flatten()])


def _rows(store: TokenStore, numbers: range, windows: int, seq_len: int, tokens: int) -> MicroBatch:
    """Read windows by number; those after the last are padding."""
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
