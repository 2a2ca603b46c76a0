"""The peak memory of a forward and backward pass of any model, from fake tensors that are counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

from trainer.model.build import build_model
from trainer.recipe.load import parse_recipe
from trainer.recipe.schema import Recipe

RECIPE = """
name: traced
model: {tokenizer: none, init: {}}
deepspeed: none
seq_len: 4096
global_batch_size: 8
sources: {a: {path: a, role: new}}
phases: [{name: one, tokens: 1e9, mixture: {a: 1}, schedule: {kind: constant, max_lr: 1e-3}}]
validation: {every_tokens: 1e9}
checkpoint: {every_tokens: 1e9}
"""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most that ever were."""

    def __init__(self, fake: bool = False) -> None:
        """Count within a `with` block; storages of `fake` tensors lie on the meta device, others' do not."""
        super().__init__()
        self.now = self.peak = 0
        self._fake = fake
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was called, and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (self._fake or tensor.device.type != "meta"):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size


@dataclass(frozen=True)
class Traced:
    """Bytes of a forward and backward pass."""

    weights: int
    kept: int
    """What the forward pass keeps for the backward pass."""
    peak: int
    """Weights included."""


@contextmanager
def _without_masks() -> Iterator[None]:
    """Let transformers leave the causal mask to the attention, as it does for tensors that hold numbers."""
    with mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None):
        yield


def recipe_of(overrides: list[str]) -> Recipe:
    """Return a recipe of which only the model matters."""
    return parse_recipe(RECIPE, overrides)


def trace(config: Mapping[str, Any], recipe: Recipe, micro_batch_size: int = 1) -> Traced:
    """Trace one forward and backward pass of the trainer's own model, loss and recomputation."""
    live = LiveBytes(fake=True)
    with FakeTensorMode(allow_non_fake_inputs=True), live, _without_masks():
        model = build_model(config, recipe, int(config["vocab_size"]), weights=False)
        weights = live.now
        ids = torch.zeros(micro_batch_size, recipe.seq_len, dtype=torch.int64)
        loss, _, _ = model(ids, ids)
        kept = live.now - weights
        loss.backward()
    return Traced(weights, kept, live.peak)
