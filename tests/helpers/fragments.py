"""A fragment as the engine makes it, for tests of what is saved."""

import torch

from trainer.storage.fragment import Fragment


def fragment(
    name: str, start: int, shape: tuple[int, ...], trained: bool, tensors: dict[str, torch.Tensor]
) -> Fragment:
    """A fragment whose weight is stepped by itself."""
    return Fragment(name, start, shape, trained, True, tensors, owner=tensors["weight"])
