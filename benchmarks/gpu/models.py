"""Small seeded models, batches and engines, as the steps share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch

from trainer.engine.defaults import with_defaults
from trainer.engine.ds_config import complete
from trainer.engine.engine import Engine, sharded_loading
from trainer.engine.layout import Layout
from trainer.mixer.batch import MicroBatch
from trainer.model.architecture import resolve_config
from trainer.model.build import build_model
from trainer.model.loss import CausalLM
from trainer.model.trainable import parameter_groups
from trainer.recipe.load import parse_recipe
from trainer.recipe.schema import Recipe

RECIPE = """
name: gpu
model: {tokenizer: none, init: {}}
deepspeed: none
seq_len: 16
global_batch_size: 8
sources: {a: {path: a, role: new}}
phases: [{name: one, tokens: 1e9, mixture: {a: 1}, schedule: {kind: constant, max_lr: 1e-3}}]
validation: {every_tokens: 1e9}
checkpoint: {every_tokens: 1e9}
"""


@dataclass(frozen=True)
class Size:
    """A model's shape and the batch that it is trained on."""

    hidden: int
    layers: int
    heads: int
    vocab: int
    seq_len: int
    batch: int

    @property
    def init(self) -> dict[str, int]:
        """The fields of `model.init`: a LLaMA with half as many key and value heads as heads."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": 3 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads // 2,
        }


def recipe(size: Size, dtype: str, *overrides: str) -> Recipe:
    """Return a recipe of this size with random weights."""
    init = ", ".join(f"{name}: {value}" for name, value in size.init.items())
    own = (f"model.init={{{init}}}", f"model.dtype={dtype}", f"seq_len={size.seq_len}")
    return parse_recipe(RECIPE, [*own, f"global_batch_size={size.batch}", *overrides])


@dataclass(frozen=True)
class Rows(MicroBatch):
    """A global batch, which can be cut."""

    def split(self, micro: int) -> list[Rows]:
        """Return the same rows in micro batches of `micro`."""
        return [
            Rows(
                self.input_ids[at : at + micro],
                self.targets[at : at + micro],
                self.source[at : at + micro],
                None if self.positions is None else self.positions[at : at + micro],
            )
            for at in range(0, len(self.input_ids), micro)
        ]


def rows(size: Size, seed: int, documents: Sequence[int] = ()) -> Rows:
    """Return a global batch of random tokens; with `documents`, their lengths, which fill a row."""
    drawn = np.random.default_rng(seed).integers(0, size.vocab, (size.batch, size.seq_len + 1))
    positions = None
    if documents:
        one = np.concatenate([np.arange(length) for length in documents])
        positions = np.broadcast_to(one, (size.batch, size.seq_len)).copy()
    return Rows(drawn[:, :-1].copy(), drawn[:, 1:].copy(), np.zeros(size.batch, np.int64), positions)


def build(recipe: Recipe, vocab: int, **options: Any) -> CausalLM:
    """The recipe's model, as a run builds it."""
    return build_model(resolve_config(recipe, vocab), recipe, vocab, **options)


@contextmanager
def engine(
    made: Recipe, size: Size, zero: dict[str, Any], micro: int, new_rows_from: int | None = None
) -> Iterator[tuple[CausalLM, Engine]]:
    """Yield the recipe's model under our engine, alone on this device; its memory is given back at the end.

    With `new_rows_from` the embeddings' rows from there on count as appended, and only they are trained.
    """
    layout = Layout(1, micro, size.batch // micro)
    fields = {**size.init, "vocab_size": size.vocab}
    config = with_defaults(complete({"zero_optimization": zero}, made, layout, fields))
    with sharded_loading(config) as initialize:
        causal = build(made, size.vocab, initialize=initialize)
    phase = made.phases[0]
    if new_rows_from is not None:
        causal.hf.config.base_vocab_size = new_rows_from
        phase = phase.model_copy(update={"train": "new_rows"})
    groups = parameter_groups(causal, phase, made.optimizer.weight_decay)
    under = Engine(causal, groups, config, made.optimizer)
    try:
        yield causal, under
    finally:
        under.close()


def whole(causal: CausalLM) -> dict[str, torch.Tensor]:
    """Return copies on the host of the weights that the next forward pass computes with."""
    found = {}
    for name, parameter in causal.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
            found[name] = parameter.detach().to("cpu", copy=True)
    return found
