"""A fragment as the engine gives it, for tests of what is saved."""

from dataclasses import dataclass, field

import torch


@dataclass
class Fragment:
    name: str
    start: int
    shape: tuple[int, ...]
    trained: bool = True
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    owned: bool = True
