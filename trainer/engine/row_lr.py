"""A learning rate of their own for the appended rows of an embedding.

The appended rows share a tensor with the old ones, and the step of AdamW does not depend on the size
of a gradient. So neither a parameter group nor a scaled gradient can give them their own LR. But AdamW
with decoupled weight decay is linear in the LR (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2):
an update with `f * lr` is `f` times the update with `lr`. So the update itself is scaled, inside the
optimizer's own step: before ZeRO rounds the weights for computing and gathers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.storage.fragment import Fragment


def elements_before_row(row: int, start: int, shape: tuple[int, ...]) -> int:
    """Count the elements from `start` on that precede `row` in a flattened parameter of `shape`."""
    return max(0, row * torch.Size(shape[1:]).numel() - start)


@dataclass(frozen=True)
class ScaledSlice:
    """Elements `begin` to `begin + count` of a flattened tensor that an optimizer steps, and their factor."""

    owner: Tensor
    begin: int
    count: int
    factor: float

    @classmethod
    def of(cls, fragment: Fragment, first_row: int, factor: float) -> ScaledSlice:
        """Take the part of a fragment that lies in the rows from `first_row` on."""
        before = elements_before_row(first_row, fragment.start, fragment.shape)
        count = fragment.tensors["weight"].numel()
        return cls(fragment.owner, fragment.offset + before, max(0, count - before), factor)

    @property
    def view(self) -> Tensor:
        """These elements, wherever the tensor's memory is at present."""
        return self.owner.data.view(-1).narrow(0, self.begin, self.count)


def scale_updates(optimizer: torch.optim.Optimizer, slices: Sequence[ScaledSlice]) -> None:
    """Multiply every later update of each slice by its factor.

    Args:
        optimizer: AdamW, torch's or DeepSpeed's; it may be stepped group by group, as ZeRO does, and its
            tensors may move to other memory between steps.
        slices: parts of tensors that it steps.
    """
    scaled = [one for one in slices if one.count and one.factor != 1.0]
    saved: list[tuple[Tensor, Tensor, float]] = []

    @torch.no_grad()
    def keep_old_values(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        stepped = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        saved[:] = [(one.view, one.view.clone(), one.factor) for one in scaled if id(one.owner) in stepped]

    @torch.no_grad()
    def scale(*_: Any) -> None:
        for view, before, factor in saved:
            view.copy_(torch.lerp(before, view, factor))
        saved.clear()

    optimizer.register_step_pre_hook(keep_old_values)
    optimizer.register_step_post_hook(scale)
