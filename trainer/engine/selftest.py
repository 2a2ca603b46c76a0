"""What each rank of `rewarm selftest` does: ten steps in every way to train, compared with plain PyTorch.

Run it on every rank as `python -m trainer.engine.selftest FILE STAGE…`; rank 0 appends a line of JSON to
FILE for each `Finding`. All rows of the first step are the same, so that a part that is left out, or counted
twice, changes the gradient by a plain factor. Those of the other steps differ, in their targets too.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenization.errors import ExitCode
from trainer.engine.defaults import with_defaults
from trainer.engine.diagnosis import Apart, Finding, Trial
from trainer.engine.ds_config import complete
from trainer.engine.engine import Engine, sharded_loading
from trainer.engine.layout import Layout
from trainer.engine.plain import PlainRun, train_plainly
from trainer.engine.requirements import supports_fp16
from trainer.machine import collectives
from trainer.machine.compile_cache import clearing_stale_locks
from trainer.machine.launcher import stop_with_launcher
from trainer.machine.log_lines import logger, show_log_lines
from trainer.machine.ranks import World, current_world
from trainer.machine.signals import end_failed_rank, exit_on_signal
from trainer.mixer.batch import MicroBatch
from trainer.model.architecture import resolve_config
from trainer.model.build import build_model
from trainer.model.cross_entropy import IGNORED
from trainer.model.loss import CausalLM
from trainer.model.trainable import parameter_groups
from trainer.recipe.load import parse_recipe
from trainer.recipe.schema import Recipe

Tensors = dict[str, Tensor]

STEPS, STEP_LR = 10, 1e-3
SEQ_LEN, PIECES, ROWS_PER_RANK = 32, 96, 8
MICRO_BATCHES = (1, 4)

RECIPE = f"""
name: selftest
model:
  tokenizer: none
  init: {{hidden_size: 32, intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 4,
         num_key_value_heads: 2}}
deepspeed: none
seq_len: {SEQ_LEN}
global_batch_size: 8
optimizer: {{eps: 1e-4}}
sources: {{a: {{path: a, role: new}}}}
phases: [{{name: one, tokens: 1e9, mixture: {{a: 1}}, schedule: {{kind: constant, max_lr: {STEP_LR}}}}}]
validation: {{every_tokens: 1e9}}
checkpoint: {{every_tokens: 1e9}}
"""
"""A model of 31,000 weights. AdamW divides by the root of the second moment plus eps: with the usual 1e-8,
weights whose gradient is rounding noise move by a whole learning rate either way. The default `grad_clip`
of 1 clips the first step and not the others."""

FP32_LIMITS = Apart(gradient=1e-5, moments=1e-5, losses=1e-5, norms=1e-5, weights=1e-4)
"""For fp32; about ten times what is measured."""

NOISE_ALLOWED = 3.0
"""In 16 bits, how many times the rounding error of a plain loop in the same precision is within the limit."""

LOSSES_16_BIT = 1e-3
"""In 16 bits, the limit of losses: a few of them say little about their rounding error."""

FACTOR_LIMITS = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 2e-3}
"""Rounding errors hardly change a gradient in its own direction, so a rank in 400 that is left out shows."""


def precisions() -> list[str]:
    """Return the number formats that this machine computes in."""
    on_gpu = collectives.device().type == "cuda"
    bf16 = torch.cuda.is_bf16_supported() if on_gpu else True
    return ["fp32", *(["bf16"] if bf16 else []), *(["fp16"] if supports_fp16() else [])]


def trials(stages: Sequence[int], ranks: int) -> Iterator[Trial]:
    """Yield every way to train. ZeRO-0 keeps no fp32 weights, which 16 bits need."""
    for dtype in precisions():
        for stage in stages:
            for parts in MICRO_BATCHES if stage or dtype == "fp32" else ():
                yield Trial(stage, dtype, parts, ranks)


def global_batch(step: int, ranks: int) -> MicroBatch:
    """Make the rows of a step for all ranks, from the step's number alone."""
    draw, rows = np.random.default_rng(step), ROWS_PER_RANK * ranks
    tokens = draw.integers(0, PIECES, (rows, SEQ_LEN + 1))
    targets = tokens[:, 1:].copy()
    if step == 0:
        tokens[:], targets[:] = tokens[0], targets[0]
    else:
        targets[np.arange(SEQ_LEN) >= draw.integers(1, SEQ_LEN + 1, (rows, 1))] = IGNORED
    return MicroBatch(tokens[:, :-1].copy(), targets, np.zeros(rows, np.int64))


def cut(batch: MicroBatch, rank: int, parts: int) -> list[MicroBatch]:
    """Return a rank's rows of a global batch, in so many micro batches."""
    own = slice(rank * ROWS_PER_RANK, (rank + 1) * ROWS_PER_RANK)
    arrays = (np.split(each[own], parts) for each in (batch.input_ids, batch.targets, batch.source))
    return [MicroBatch(*one) for one in zip(*arrays, strict=True)]


def _recipe(dtype: str, ranks: int) -> Recipe:
    return parse_recipe(RECIPE, [f"model.dtype={dtype}", f"global_batch_size={ROWS_PER_RANK * ranks}"])


def _build(recipe: Recipe, **options: Any) -> CausalLM:
    return build_model(resolve_config(recipe, PIECES), recipe, PIECES, **options)


class Reference:
    """Ten steps of plain PyTorch in fp64, and what rounding to the trained precision changes in them."""

    def __init__(self, dtype: str, ranks: int) -> None:
        recipe, device = _recipe(dtype, ranks), collectives.device()
        batches = [global_batch(step, ranks) for step in range(STEPS)]
        exact = _build(recipe).to(device, torch.float64)
        self.run = train_plainly(exact, batches, recipe.optimizer, STEP_LR, torch.float64)
        self.clip = recipe.optimizer.grad_clip
        self.limits = FP32_LIMITS
        if dtype != "fp32":
            rounded = train_plainly(
                _build(recipe).to(device), batches, recipe.optimizer, STEP_LR, torch.float64
            )
            noise = self.apart_of(rounded)
            times = {name: NOISE_ALLOWED * value for name, value in vars(noise).items()}
            self.limits = Apart(**{**times, "losses": LOSSES_16_BIT})

    def apart_of(self, other: PlainRun) -> Apart:
        """How far another plain loop is from this one."""
        run = self.run
        return Apart(
            gradient=_distance(_sums(other.gradient, run.gradient)),
            moments=_distance(_sums(other.averages, run.averages)),
            losses=_largest(other.losses, run.losses),
            norms=_largest(other.norms, run.norms),
            weights=_distance(_sums(other.weights, run.weights, run.before)),
        )


def _largest(found: Sequence[float], exact: Sequence[float]) -> float:
    """Return the largest relative difference; NaN if one is NaN."""
    apart = np.abs(np.array(found) - np.array(exact)) / np.abs(np.array(exact))
    return float(apart.max())


def _sums(found: Tensors, exact: Tensors, origin: Tensors | None = None) -> Tensor:
    """Return `[elements, |found - exact|², |exact - origin|², found · exact]`, summed over all tensors."""
    total = torch.zeros(4, dtype=torch.float64)
    for name, value in found.items():
        mine, right = value.double().cpu().flatten(), exact[name].double().flatten()
        moved = right if origin is None else right - origin[name].double().flatten()
        sums = (len(mine), (mine - right).square().sum(), moved.square().sum(), mine @ right)
        total += torch.tensor([float(one) for one in sums], dtype=torch.float64)
    return total


def _distance(sums: Tensor) -> float:
    return float((sums[1] / sums[2]).sqrt())


def _of_all_ranks(
    engine: Engine, kind: str, exact: Tensors, times: float = 1.0, origin: Tensors | None = None
) -> Tensor:
    """Return `_sums` of what all ranks hold of a kind of tensor, multiplied by `times`.

    Raises:
        AssertionError: the ranks together do not hold every element once.
    """
    total = torch.zeros(4, dtype=torch.float64)
    for own in engine.fragments():
        if own.owned:
            mine = own.tensors[kind].detach() * times
            part = slice(own.start, own.start + len(mine))
            before = None if origin is None else {own.name: origin[own.name].flatten()[part]}
            total += _sums({own.name: mine}, {own.name: exact[own.name].flatten()[part]}, before)
    total = collectives.all_reduce_sum(total).cpu()
    assert int(total[0]) == sum(value.numel() for value in exact.values()), "elements are missing"
    return total


def _open_engine(trial: Trial, recipe: Recipe) -> Engine:
    layout = Layout(trial.ranks, ROWS_PER_RANK // trial.micro_batches, trial.micro_batches)
    fields = resolve_config(recipe, PIECES)
    preset = {"zero_optimization": {"stage": trial.stage}}
    config = with_defaults(complete(preset, recipe, layout, fields))
    with sharded_loading(config) as initialize:
        causal = _build(recipe, initialize=initialize)
    groups = parameter_groups(causal, recipe.phases[0], recipe.optimizer.weight_decay)
    return Engine(causal, groups, config, recipe.optimizer)


def run_trial(trial: Trial, reference: Reference, rank: int) -> Finding:
    """Train ten steps and compare them; all ranks return the same."""
    recipe, exact = _recipe(trial.dtype, trial.ranks), reference.run
    engine = _open_engine(trial, recipe)
    losses, norms, skipped = [], [], 0
    first = torch.zeros(4)
    for step in range(STEPS):
        micros = cut(global_batch(step, trial.ranks), rank, trial.micro_batches)
        result = engine.train_step(micros, STEP_LR, sources=1, seed=step, stop=False)
        losses.append(float(result.source_nats.sum() / result.source_targets.sum()))
        norms.append(result.grad_norm)
        skipped += not result.applied
        if step == 0:
            # AdamW's first average is 1 - beta1 times the gradient, which was clipped to `grad_clip`.
            whole = max(1.0, norms[0] / reference.clip) / (1 - recipe.optimizer.beta1)
            first = _of_all_ranks(engine, "exp_avg", exact.gradient, whole)
    moments = _of_all_ranks(engine, "exp_avg", exact.averages)
    weights = _of_all_ranks(engine, "weight", exact.weights, origin=exact.before)
    engine.close()
    apart = Apart(
        gradient=_distance(first),
        moments=_distance(moments),
        losses=_largest(losses, exact.losses),
        norms=_largest(norms, exact.norms),
        weights=_distance(weights),
    )
    factor = float(first[3] / first[2])
    return Finding(trial, apart, reference.limits, factor, FACTOR_LIMITS[trial.dtype], skipped)


def run_trials(file: Path, stages: Sequence[int]) -> None:
    """Join the ranks, and make every trial; one that fails ends the process, and its launcher the others."""
    exit_on_signal()
    stop_with_launcher()
    world = current_world()
    show_log_lines(world.rank)
    torch.set_float32_matmul_precision("highest")
    try:
        with collectives.lost_peers_named():
            with clearing_stale_locks():
                collectives.join_ranks(world)
            _make_trials(file, stages, world)
            collectives.leave_ranks()
    except Exception:
        traceback.print_exc()  # the ranks' launcher ends the others
        end_failed_rank(ExitCode.FAILED)
        raise


def _make_trials(file: Path, stages: Sequence[int], world: World) -> None:
    references: dict[str, Reference] = {}
    for trial in trials(stages, world.world_size):
        logger.info(f"{trial}: {STEPS} steps")
        if trial.dtype not in references:
            references[trial.dtype] = Reference(trial.dtype, trial.ranks)
        finding = run_trial(trial, references[trial.dtype], world.rank)
        if world.rank == 0:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(finding.to_json()) + "\n")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local")]
    run_trials(Path(words[0]), [int(word) for word in words[1:]])
