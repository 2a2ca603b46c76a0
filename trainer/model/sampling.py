"""Documents drawn from a model itself, a batch at a time, and which of them are not worth keeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST_PERIOD = 64
"""Tokens; a text that repeats itself at a greater distance is not called a loop."""

LEAST_LOOP = 32
"""Tokens that a loop repeats at least."""


@dataclass(frozen=True)
class SamplingRules:
    """How documents are drawn."""

    temperature: float
    longest: int
    """Tokens after which a document is cut."""
    start_id: int
    """What every document follows: BOS, or the EOS of the document before it."""
    eos_id: int
    allowed: Sequence[bool]
    """Per piece whether it may be drawn."""


@torch.inference_mode()
def sample_documents(hf: Any, rules: SamplingRules, count: int, seed: int) -> list[list[int]]:
    """Draw `count` documents from a model of transformers, token by token with its cache of keys and values.

    A document ends before the first EOS, or is cut after `rules.longest` tokens. Rows that have ended are
    dropped once they are half of the batch. Each token is drawn from softmax(logits / temperature) over the
    allowed pieces, by a generator of its own: the same seed gives the same documents on the same device.
    """
    device = hf.get_input_embeddings().weight.device
    generator = torch.Generator(device).manual_seed(seed)
    barred = ~torch.tensor(rules.allowed, device=device)
    drawn = torch.full((count, rules.longest), rules.eos_id, device=device)
    rows = torch.arange(count, device=device)  # the documents that are being written
    going = torch.ones(count, dtype=torch.bool, device=device)
    last, cache = torch.full((count, 1), rules.start_id, device=device), None
    for place in range(rules.longest):
        result = hf(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = result.past_key_values
        last = _draw(result.logits[:, -1, : barred.numel()], barred, rules.temperature, generator)
        going &= last[:, 0] != rules.eos_id
        drawn[rows[going], place] = last[going, 0]
        left = int(going.sum())
        if left == 0:
            break
        if 2 * left <= going.numel():
            kept = going.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, last, going = rows[kept], last[kept], going[kept]
    lengths = (drawn != rules.eos_id).sum(dim=1).tolist()
    return [row[:length] for row, length in zip(drawn.tolist(), lengths, strict=True)]


def _draw(logits: Tensor, barred: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Return a token for each row [batch, 1] of logits [batch, pieces]."""
    scaled = (logits.float() / temperature).masked_fill(barred, -torch.inf)
    return torch.multinomial(torch.softmax(scaled, dim=-1), 1, generator=generator)


def is_loop(ids: Sequence[int]) -> bool:
    """Tell whether a document holds a passage that is repeated over and over.

    It does if, for a period of up to `LONGEST_PERIOD` tokens, a run of tokens that equal the one a period
    before is as long as three periods, and `LEAST_LOOP` tokens or more.
    """
    row = np.asarray(ids)
    for period in range(1, min(LONGEST_PERIOD, row.size - LEAST_LOOP) + 1):
        needed = max(3 * period, LEAST_LOOP)
        breaks = np.flatnonzero(row[period:] != row[:-period])
        bounds = np.concatenate([[-1], breaks, [row.size - period]])
        if int(np.diff(bounds).max()) - 1 >= needed:
            return True
    return False
