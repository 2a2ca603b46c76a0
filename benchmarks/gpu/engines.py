"""The trainer's engine and a bare PyTorch loop over the same model and the same data, for steps that measure.

Nothing here prints; what a step of the benchmark says is said by the step.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.gpu.float8 import compute_in_float8
from benchmarks.gpu.models import build
from tokenization.shards.store import TokenStore, open_tokens
from tokenization.shards.writer import ShardWriter
from trainer.engine.ds_config import complete, read_preset
from trainer.engine.engine import Engine
from trainer.engine.layout import Layout
from trainer.machine import collectives
from trainer.mixer.loader import Loader
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.model.trainable import parameter_groups
from trainer.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Shape:
    """A LLaMA's sizes."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int

    def config(self, vocab_size: int) -> dict[str, Any]:
        """Return the Hugging Face fields, with their architecture."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_attention_heads,
            "max_position_embeddings": 4096,
            "vocab_size": vocab_size,
        }


ONE_B = Shape("1B", 2048, 5632, 18, 16)
THREE_B = Shape("3B", 3072, 8192, 28, 24)
SEVEN_B = Shape("7B", 4096, 11008, 32, 32)
EIGHT_B = Shape("8B", 4096, 14336, 32, 32)
TOY = Shape("toy", 64, 176, 2, 2)
SMALLER_TOY = Shape("smaller toy", 32, 88, 2, 2)


@dataclass(frozen=True)
class Setting:
    """What is trained, and how it is cut."""

    shape: Shape
    vocab_size: int
    recompute: str = "none"
    micro_batch_size: int = 4
    accumulation: int = 2
    seq_len: int = 4096
    dtype: str = "bf16"
    preset: str = "zero2.json"
    ranks: int = 1
    compiled: bool = False
    loss: str = "auto"
    state_dtype: str = "fp32"
    attention: str = "auto"
    document_mask: str = "none"
    float8: bool = False
    """Whether the decoder layers' matrix products are in 8 bits (`benchmarks.gpu.float8`)."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step on one rank."""
        return self.micro_batch_size * self.accumulation * self.seq_len

    def recipe(self, data: Path) -> Recipe:
        """Return the recipe that a user would write for it."""
        init = {name: value for name, value in self.shape.config(0).items() if name != "vocab_size"}
        return Recipe.model_validate(
            {
                "name": self.shape.name.replace(" ", "-"),
                "run_dir": str(data / "run"),
                "model": {
                    "tokenizer": str(data / "no-tokenizer"),
                    "dtype": self.dtype,
                    "init": init,
                    "activation_checkpointing": self.recompute,
                    "attention": self.attention,
                    "compile": self.compiled,
                    "loss": self.loss,
                },
                "optimizer": {"state_dtype": self.state_dtype},
                "deepspeed": str(ROOT / "ds_configs" / self.preset),
                "seq_len": self.seq_len,
                "document_mask": self.document_mask,
                "micro_batch_size": self.micro_batch_size,
                "global_batch_size": self.ranks * self.micro_batch_size * self.accumulation,
                "sources": {"noise": {"path": str(data / "noise"), "role": "new", "max_epochs": None}},
                "phases": [
                    {
                        "name": "only",
                        "tokens": 10_000 * self.tokens_per_step,
                        "mixture": {"noise": 1},
                        "schedule": {"kind": "constant", "max_lr": 1e-4},
                    }
                ],
                "validation": {"every_tokens": "1e12"},
                "checkpoint": {"every_tokens": "1e12"},
            }
        )


def make_noise(folder: Path, vocab_size: int, tokens: int, eos_id: int = 2) -> TokenStore:
    """Return a shard of random documents."""
    random = np.random.default_rng(0)
    ids = random.integers(3, vocab_size, tokens).astype(np.int32)
    lengths = np.full(tokens // 1000 + 1, 1000)
    lengths[-1] = tokens - 1000 * (len(lengths) - 1)
    lengths = lengths[lengths > 0]
    ids[np.cumsum(lengths) - 1] = eos_id
    with ShardWriter(folder / "noise", vocab_size=vocab_size, tokenizer="none", eos_id=eos_id) as shard:
        shard.add_documents(ids, lengths)
    return open_tokens(folder / "noise")


def loader_of(recipe: Recipe, store: TokenStore, layout: Layout) -> Loader:
    """Return the trainer's own loader over one store."""
    mixture = Mixture.from_recipe(recipe, {"noise": SourceSize.of(store, recipe.seq_len)})
    return Loader(
        mixture,
        {"noise": store},
        micro_batch_size=layout.micro_batch_size,
        rank=collectives.rank() if layout.world_size > 1 else 0,
        world_size=layout.world_size,
        document_mask=recipe.document_mask,
        eos_id=store.eos_id,
    )


def on_device(recipe: Recipe, vocab_size: int, float8: bool = False) -> Any:
    """Return the trainer's model with random weights drawn where they will be used, which is fast."""
    if float8:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"compile": False})})
    where = torch.device("cuda") if torch.cuda.is_available() else None
    with where or nullcontext():
        model = build(recipe, vocab_size, weights=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02)
            else:
                parameter.fill_(1.0)
    if float8:
        compute_in_float8(model.hf)
    return model


@dataclass(frozen=True)
class Timed:
    """What some steps took."""

    tokens: int
    seconds: float
    wait_s: float
    """Of it, waiting for data."""
    loss: float
    """Nats per token at the last step."""


class Ours:
    """A training step as `trainer.loop` does it, without its metrics and checkpoints."""

    def __init__(self, setting: Setting, folder: Path, store: TokenStore, model: Any = None) -> None:
        self.setting = setting
        recipe = setting.recipe(folder)
        layout = Layout(setting.ranks, setting.micro_batch_size, setting.accumulation)
        config = complete(
            read_preset(recipe.deepspeed), recipe, layout, setting.shape.config(setting.vocab_size)
        )
        model = on_device(recipe, setting.vocab_size, setting.float8) if model is None else model
        groups = parameter_groups(model, recipe.phases[0], recipe.optimizer.weight_decay)
        self.recipe, self.engine = recipe, Engine(model, groups, config, recipe.optimizer)
        self.loader = loader_of(recipe, store, layout)
        self.done = 0

    def steps(self, count: int) -> Timed:
        """Train so many steps."""
        synchronize()
        began, wait_s, size = time.perf_counter(), 0.0, self.recipe.global_batch_size
        for _ in range(count):
            batch = self.loader.step(0, self.done * size, size)
            wait_s += self.loader.wait_s
            result = self.engine.train_step(batch, 1e-4, sources=1, seed=self.done, stop=False)
            self.done += 1
        synchronize()
        seconds = time.perf_counter() - began
        loss = float(result.source_nats[0] / result.source_targets[0])
        return Timed(count * self.setting.tokens_per_step, seconds, wait_s, loss)

    def close(self) -> None:
        """Give the memory back, as a session does at a phase's end."""
        self.loader.close()
        self.engine.close()
        del self.engine
        torch._dynamo.reset()
        forget()


class Bare:
    """The loop that one writes by hand.

    Weights and gradients in the model's dtype, AdamW (fused on a GPU) on fp32 masters, gradients clipped to
    norm 1, transformers' own forward, cross-entropy of all logits in fp32.
    """

    def __init__(self, setting: Setting, folder: Path, store: TokenStore) -> None:
        self.setting = setting
        recipe = setting.recipe(folder)
        self.model = on_device(recipe, setting.vocab_size).hf
        self.weights = [one for one in self.model.parameters() if one.requires_grad]
        self.masters = [one.detach().float().clone() for one in self.weights]
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        decay = recipe.optimizer.weight_decay
        groups = [
            {"params": [m for m in self.masters if (m.dim() > 1) is matrix], "weight_decay": decay * matrix}
            for matrix in (True, False)
        ]
        self.adam = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=torch.cuda.is_available())
        layout = Layout(1, setting.micro_batch_size, setting.accumulation)
        self.loader = loader_of(recipe, store, layout)
        self.device = self.weights[0].device
        self.done = 0

    def steps(self, count: int) -> Timed:
        """Train so many steps."""
        synchronize()
        began, wait_s = time.perf_counter(), 0.0
        size = self.setting.micro_batch_size * self.setting.accumulation
        for _ in range(count):
            batch = self.loader.step(0, self.done * size, size)
            wait_s += self.loader.wait_s
            loss = self._step(batch)
            self.done += 1
        synchronize()
        return Timed(
            count * self.setting.tokens_per_step, time.perf_counter() - began, wait_s, float(loss.item())
        )

    def _step(self, batch: Sequence[Any]) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        for micro in batch:
            ids, targets = (
                torch.as_tensor(array).to(self.device, non_blocking=True)
                for array in (micro.input_ids, micro.targets)
            )
            logits = self.model(input_ids=ids, use_cache=False).logits
            loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
            (loss / len(batch)).backward()
            total += loss.detach() / len(batch)
            del logits, loss
        with torch.no_grad():
            torch._foreach_copy_([master.grad for master in self.masters], [one.grad for one in self.weights])
            torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
            self.adam.step()
            torch._foreach_copy_(self.weights, self.masters)
        for one in self.weights:
            one.grad = None
        return total

    def close(self) -> None:
        """Give the memory back."""
        self.loader.close()
        del self.model, self.weights, self.masters, self.adam
        forget()


def synchronize() -> None:
    """Wait for the card, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget() -> None:
    """Give freed memory back to the card, and reset the count of the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def held_gib() -> float:
    """Memory in use on the card now."""
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def peak_gib() -> float | None:
    """Most memory in use on the card since `forget`; None without a card."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def card() -> str:
    """Return the name of the device."""
    return collectives.device_name()
