"""A fragment: the part of a parameter, with its fp32 weight and optimizer moments, that one rank holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

AVERAGE = "average"
"""The running average of a trained weight, in a run that keeps one."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running averages, as torch and DeepSpeed name them."""


@dataclass
class Fragment:
    """A range of a flattened parameter, with tensors that may be read and overwritten."""

    name: str
    start: int
    """First element within the flattened parameter."""
    shape: tuple[int, ...]
    """The whole parameter's shape."""
    trained: bool
    owned: bool
    """Whether this rank saves it: if several ranks hold a whole parameter, one of them does."""
    tensors: dict[str, torch.Tensor]
    """`weight` and, if trained, the moments (and the average): one-dimensional, fp32; a frozen weight that
    another rank saves has any dtype."""
    owner: torch.Tensor
    """The tensor that the optimizer steps, of which `weight` is a part; if frozen, the weight itself."""
    offset: int = 0
    """Place of `weight` in `owner`, in elements."""
