"""Rows of a tensor with a learning rate of their own.

The appended rows of an embedding share a tensor with the old ones, and AdamW's step does not depend
on the size of a gradient, so neither a parameter group nor a scaled gradient can give them their own
LR. But AdamW with decoupled weight decay is linear in the LR (Loshchilov and Hutter, arXiv 1711.05101,
algorithm 2): a step of `f * lr` is `f` times the step of `lr`. So the step itself is stretched, inside
the optimizer's own step: before ZeRO rounds the weights for computing and gathers them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The last rows of a parameter, from `first` on, and the factor on their group's LR."""

    first: int
    factor: float

    def of(self, flat: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        """Their part of `flat`, which holds the elements from `start` on of a parameter of `shape`."""
        width = torch.Size(shape[1:]).numel()
        return flat[max(0, self.first * width - start) :]


def stretch(optimizer: torch.optim.Optimizer, stretched: Iterable[tuple[Tensor, float]]) -> None:
    """From now on each view moves by its factor times what `optimizer` moves it.

    Args:
        optimizer: AdamW, torch's or DeepSpeed's; it may be stepped group by group, as ZeRO does.
        stretched: views into tensors that it steps, and their factors.
    """
    views = [(view, factor) for view, factor in stretched if view.numel() and factor != 1.0]
    held: list[tuple[Tensor, Tensor, float]] = []

    @torch.no_grad()
    def hold(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        stepped = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        held[:] = [
            (view, view.clone(), factor)
            for view, factor in views
            if any(_within(view, tensor) for tensor in stepped)
        ]

    @torch.no_grad()
    def move(*_: Any) -> None:
        for view, before, factor in held:
            view.copy_(torch.lerp(before, view, factor))
        held.clear()

    optimizer.register_step_pre_hook(hold)
    optimizer.register_step_post_hook(move)


def _within(view: Tensor, whole: Tensor) -> bool:
    """Whether `view` shows a part of the contiguous tensor `whole`."""
    start = whole.data_ptr()
    return start <= view.data_ptr() < start + whole.numel() * whole.element_size()
