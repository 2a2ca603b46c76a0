"""Attention within documents that lie end to end, by the kernels for rows of different lengths that PyTorch
has for NVIDIA cards: it takes no mask, and no time for what a mask would hide."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "rewarm_documents"
"""The name under which transformers finds this attention; it makes no mask of its own for such a name."""

DocumentPlaces = tuple[Tensor, int]
"""Where documents begin in all rows laid end to end, then where the last one ends, `[documents + 1]` int32 on
the device; and the tokens of the longest one."""


def available() -> bool:
    """Tell whether this PyTorch and this card have the kernels (Ampere or newer)."""
    if not torch.cuda.is_available() or torch.version.hip or torch.cuda.get_device_capability() < (8, 0):
        return False
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return False
    return {"window_size", "scale"} <= set(inspect.signature(varlen.varlen_attn).parameters)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: DocumentPlaces | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each document, or within each row, as an attention function of transformers.

    Args:
        module: the attention layer.
        query: `[micro, heads, seq, head_dim]`.
        key: `[micro, key_value_heads, seq, head_dim]`.
        value: like `key`.
        attention_mask: not used.
        documents: the documents of all rows; None where each row is one.
        scaling: the factor of the scores; None: one by the root of head_dim.
        kwargs: what SDPA takes beside these.

    Returns:
        `[micro, seq, heads, head_dim]`, and no weights.
    """
    if documents is None:
        found, _ = sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
        return found, None
    rows, heads, length, size = query.shape
    packed = (one.transpose(1, 2).flatten(0, 1) for one in (query, key, value))
    return _within(*packed, *documents, scaling).view(rows, length, heads, size), None


@torch.compiler.disable  # documents change in number and length, and the layer would be compiled anew
def _within(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int, scaling: float | None
) -> Tensor:
    """Attend over `[tokens, heads, head_dim]`."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: Any = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            grouped = {"enable_gqa": True}
        else:  # PyTorch 2.11
            shared = query.shape[1] // key.shape[1]
            key, value = (one.repeat_interleave(shared, dim=1) for one in (key, value))
    found = varlen_attn(
        query,
        key,
        value,
        begins,
        begins,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        **grouped,
    )
    assert isinstance(found, Tensor)
    return found


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
