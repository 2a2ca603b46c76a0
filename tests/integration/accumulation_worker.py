"""What test_accumulation.py runs in its own process: one global batch, cut in many ways, at every stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from torch.nn import functional

from tests.helpers.model_tiny import build, recipe, tokens
from trainer.engine.ds_config import complete
from trainer.engine.engine import Engine, sharded_loading
from trainer.engine.layout import Layout
from trainer.machine import collectives
from trainer.machine.ranks import World
from trainer.mixer.batch import MicroBatch
from trainer.model.architecture import resolve_config
from trainer.model.trainable import parameter_groups

PIECES, ROWS = 90, 32  # summed in 16 bits, so many gradients have 1.5 times the error of one
CUTS = (1, ROWS)
"""Micro batches in a step."""
SCALE = 2.0**16
"""The loss scale that DeepSpeed begins with in fp16; in other precisions it changes nothing."""
PRESETS = {
    **{f"zero{stage}": {"stage": stage} for stage in (0, 1, 2, 3)},
    **{
        f"zero{stage}-offload": {"stage": stage, "offload_optimizer": {"device": "cpu"}}
        for stage in (1, 2, 3)
    },
}
Gradients = dict[str, torch.Tensor]


def batch(parts: int) -> list[MicroBatch]:
    """The same rows, in so many micro batches."""
    ids = tokens(ROWS, 17, pieces=PIECES, seed=7).numpy()
    return [
        MicroBatch(part[:, :-1].copy(), part[:, 1:].copy(), np.zeros(len(part), int))
        for part in np.split(ids, parts)
    ]


def plan(dtype: str) -> Any:
    """A recipe whose steps are not clipped; the moments are then those of the gradients."""
    return recipe(f"model.dtype={dtype}", "optimizer.grad_clip=0", f"global_batch_size={ROWS}")


def by_hand(dtype: str, rounded: Mapping[str, torch.Tensor]) -> Gradients:
    """The gradient of the mean loss, row by row in `dtype`, summed in fp64."""
    causal = build(plan(dtype), PIECES)
    with torch.no_grad():
        for name, parameter in causal.named_parameters():
            parameter.copy_(rounded[name])
    sums = {name: torch.zeros(one.shape, dtype=torch.float64) for name, one in rounded.items()}
    for row in batch(ROWS):
        causal.zero_grad()
        logits = causal.hf(torch.from_numpy(row.input_ids), use_cache=False).logits.float()
        loss = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(row.targets).flatten())
        (loss / ROWS * SCALE).backward()
        for name, parameter in causal.named_parameters():
            assert parameter.grad is not None
            sums[name] += parameter.grad.double() / SCALE
    return sums


def distance(found: Gradients, exact: Gradients) -> float:
    """The norm of the error, relative to the gradient's."""
    apart = sum(float((found[name] - value).square().sum()) for name, value in exact.items())
    return float((apart / sum(float(value.square().sum()) for value in exact.values())) ** 0.5)


def step_twice(dtype: str, zero: dict[str, Any], parts: int, exact: Gradients) -> list[float]:
    """The gradients' errors in two steps on the same batch at LR 0, as AdamW's first average shows them."""
    made = plan(dtype)
    config = complete(
        {"zero_optimization": zero}, made, Layout(1, ROWS // parts, parts), resolve_config(made, PIECES)
    )
    with sharded_loading(config) as initialize:
        causal = build(made, PIECES, initialize=initialize)
    groups = parameter_groups(causal, made.phases[0], made.optimizer.weight_decay)
    engine = Engine(causal, groups, config, made.optimizer)
    errors = []
    for number in (1, 2):
        assert engine.train_step(batch(parts), 0.0, 1, 0, False).applied
        share = 1 - made.optimizer.beta1**number
        found = {f.name: f.tensors["exp_avg"].double().view(f.shape) / share for f in engine.fragments()}
        errors.append(distance(found, exact))
    engine.close()
    return errors


def main(out: Path) -> None:
    get_accelerator().is_fp16_supported = lambda: True
    collectives.join_ranks(World())
    found: dict[str, Any] = {}
    for dtype in ("fp32", "bf16", "fp16"):
        rounded = {name: one.detach().float() for name, one in build(plan(dtype), PIECES).named_parameters()}
        exact = by_hand("fp32", rounded)
        found[dtype] = {"by hand": distance(by_hand(dtype, rounded), exact)}
        for name, zero in PRESETS.items():
            if zero["stage"] == 0 and dtype != "fp32":
                continue
            for parts in CUTS:
                found[dtype][f"{name} in {parts}"] = step_twice(dtype, zero, parts, exact)
    out.write_text(json.dumps(found))
    collectives.leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
