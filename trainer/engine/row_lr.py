"""Rows of a tensor with a learning rate of their own.

The appended rows of an embedding share a tensor with the old ones, and AdamW's step does not depend
on the size of a gradient, so neither a parameter group nor a scaled gradient can give them their own
LR. But AdamW with decoupled weight decay is linear in the LR (Loshchilov and Hutter, arXiv 1711.05101,
algorithm 2): a step of `f * lr` is `f` times the step of `lr`. So the step itself is stretched, inside
the optimizer's own step: before ZeRO rounds the weights for computing and gathers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The last rows of a parameter, from `first` on, and the factor on their group's LR."""

    first: int
    factor: float

    def before(self, start: int, shape: tuple[int, ...]) -> int:
        """How many elements from `start` on of a parameter of `shape` come before them."""
        width = torch.Size(shape[1:]).numel()
        return max(0, self.first * width - start)


@dataclass(frozen=True)
class ScaledSlice:
    """Elements `begin` to `begin + count` of a flattened tensor that an optimizer steps, and their factor."""

    owner: Tensor
    begin: int
    count: int
    factor: float

    @property
    def view(self) -> Tensor:
        """These elements, wherever the tensor's memory is just now."""
        return self.owner.data.view(-1).narrow(0, self.begin, self.count)


def scale_updates(optimizer: torch.optim.Optimizer, stretched: Sequence[ScaledSlice]) -> None:
    """From now on each of these moves by its factor times what `optimizer` moves it.

    Args:
        optimizer: AdamW, torch's or DeepSpeed's; it may be stepped group by group, as ZeRO does, and its
            tensors may come from and go to other memory between steps.
        stretched: parts of tensors that it steps.
    """
    wanted = [one for one in stretched if one.count and one.factor != 1.0]
    held: list[tuple[Tensor, Tensor, float]] = []

    @torch.no_grad()
    def hold(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        stepped = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        held[:] = [(one.view, one.view.clone(), one.factor) for one in wanted if id(one.owner) in stepped]

    @torch.no_grad()
    def move(*_: Any) -> None:
        for view, before, factor in held:
            view.copy_(torch.lerp(before, view, factor))
        held.clear()

    optimizer.register_step_pre_hook(hold)
    optimizer.register_step_post_hook(move)
