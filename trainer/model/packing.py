"""Say to transformers whether rows hold several documents: it would read that from the device, and wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from transformers import masking_utils

_packed: ContextVar[bool | None] = ContextVar("packed", default=None)

_find_packed_sequence_indices = masking_utils.find_packed_sequence_indices


@contextmanager
def known_packing(packed: bool) -> Iterator[None]:
    """Let transformers take rows for packed (documents where positions restart) or for whole, unseen."""
    before = _packed.set(packed)
    try:
        yield
    finally:
        _packed.reset(before)


def _without_looking(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Do as `find_packed_sequence_indices`, which asks the device whether any row is packed."""
    packed = _packed.get()
    if packed is None:
        found: torch.Tensor | None = _find_packed_sequence_indices(position_ids)
        return found
    if not packed:
        return None
    first = position_ids[:, :1] - 1
    return (torch.diff(position_ids, prepend=first, dim=-1) != 1).cumsum(-1)


masking_utils.find_packed_sequence_indices = _without_looking
