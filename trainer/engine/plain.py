"""A training loop in plain PyTorch, without DeepSpeed or chunks: what the engine is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.engine.diagnosis import LOSS_SCALE
from trainer.mixer.batch import MicroBatch
from trainer.model.cross_entropy import IGNORED
from trainer.model.loss import CausalLM
from trainer.recipe.schema import Optimizer


@dataclass(frozen=True)
class PlainRun:
    """What a plain loop did; tensors by the parameter's name in `CausalLM`, on the host."""

    losses: list[float]
    """Mean cross-entropy of each step, in nats."""
    norms: list[float]
    """Global gradient norm of each step, before clipping."""
    before: dict[str, Tensor]
    weights: dict[str, Tensor]
    """The weights before the first step and after the last."""
    gradient: dict[str, Tensor]
    """Of the first step, before clipping."""
    averages: dict[str, Tensor]
    """AdamW's running averages of the gradients after the last step."""


def plain_groups(named: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Make parameter groups for AdamW: matrices decay, and vectors do not."""
    trained = [value for _, value in named if value.requires_grad]
    return [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]


def plain_loss(hf: Any, batch: MicroBatch) -> Tensor:
    """Return the mean cross-entropy of a batch, from whole logits in fp32, or fp64 for a model in fp64."""
    ids, targets = (torch.as_tensor(each).to(hf.device) for each in (batch.input_ids, batch.targets))
    logits = hf(ids, use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=IGNORED)


def train_plainly(
    causal: CausalLM,
    batches: Sequence[MicroBatch],
    optimizer: Optimizer,
    lr: float,
    masters: torch.dtype = torch.float32,
) -> PlainRun:
    """Train a model by one step a batch: forward, backward, clip, AdamW; its weights are overwritten.

    Frozen parameters stay. AdamW steps copies of the weights in the precision `masters`, and the model
    computes with them rounded to its own. The losses are scaled by a power of two meanwhile, without which
    fp16 loses small gradients.
    """
    named = {name: one for name, one in causal.named_parameters() if one.requires_grad}
    held = {name: one.detach().to(masters, copy=True).requires_grad_() for name, one in named.items()}
    adam = torch.optim.AdamW(
        plain_groups(held.items(), optimizer.weight_decay),
        lr=lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        foreach=False,
    )
    before = _on_host(causal)
    losses, norms = [], []
    first: dict[str, Tensor] = {}
    for batch in batches:
        causal.zero_grad()
        mean = plain_loss(causal.hf, batch)
        (mean * LOSS_SCALE).backward()
        for name, one in named.items():
            assert one.grad is not None
            held[name].grad = one.grad.to(masters) / LOSS_SCALE
        first = first or {name: one.grad.cpu().clone() for name, one in held.items() if one.grad is not None}
        clip = optimizer.grad_clip or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(held.values(), clip, foreach=False)))
        adam.step()
        with torch.no_grad():
            for name, one in named.items():
                one.copy_(held[name])
        losses.append(mean.item())
    weights = _on_host(causal) | {name: one.detach().cpu() for name, one in held.items()}
    averages = {name: adam.state[one]["exp_avg"].cpu() for name, one in held.items()}
    return PlainRun(losses, norms, before, weights, first, averages)


def _on_host(causal: CausalLM) -> dict[str, Tensor]:
    return {name: one.detach().to("cpu", copy=True) for name, one in causal.named_parameters()}
