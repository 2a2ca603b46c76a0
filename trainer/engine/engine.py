"""The training step under DeepSpeed: its result does not depend on how the batch is cut."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.utils import set_z3_leaf_modules

from trainer.engine.adamw import applied_steps, make_adamw, set_applied_steps
from trainer.engine.ds_config import WHOLE_BUCKET, offloads_optimizer, stage, swap_folders
from trainer.engine.fragments import EngineState
from trainer.engine.norm import norm_of
from trainer.engine.result import OwnTime, StepResult
from trainer.engine.row_lr import ScaledSlice, scale_updates
from trainer.engine.skipping import NEVER, NO_LIMITS, Limits, Verdict
from trainer.machine import collectives
from trainer.mixer.batch import MicroBatch, begins_within, document_bounds
from trainer.mixer.permutation import key_of
from trainer.recipe.schema import Optimizer
from trainer.storage.fragment import AVERAGE, Fragment


@contextmanager
def sharded_loading(config: dict[str, Any]) -> Iterator[Callable[[Any], None]]:
    """Let transformers shard a model while it builds or loads it, at ZeRO stage 3.

    Yields the function that draws the initial weights of such a model.
    """
    from transformers.integrations.deepspeed import (
        HfDeepSpeedConfig,
        initialize_weights_zero3,
        unset_hf_deepspeed_config,
    )

    sharded = stage(config) == 3
    held = HfDeepSpeedConfig(config) if sharded else None
    try:
        yield initialize_weights_zero3 if sharded else lambda hf: hf.initialize_weights()
    finally:
        del held
        unset_hf_deepspeed_config()


def clear_swapped(config: dict[str, Any]) -> None:
    """Remove the run's files on this node's NVMe; all ranks call it while none uses them.

    A killed run may have left files of other ranks, or of other lengths, on which DeepSpeed aborts.
    """
    if folders := swap_folders(config):
        collectives.all_gather(None)
        if collectives.local_rank() == 0:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        collectives.all_gather(None)


def accumulate_in_fp32(optimizer: Any) -> None:
    """Let DeepSpeed's optimizer of ZeRO stage 1 add the gradients of micro batches in fp32.

    In bf16 DeepSpeed 0.19 answers `data_types.grad_accum_dtype` with another optimizer, whose states have
    other names. In fp16 it sets these three attributes of the same one, which is what both need.
    """
    optimizer.gradient_accumulation_dtype = torch.float32
    optimizer.use_separate_grad_accum = optimizer.use_grad_accum_attribute = optimizer.dtype != torch.float32


class Engine:
    """A model under DeepSpeed, for one phase."""

    def __init__(
        self,
        model: torch.nn.Module,
        groups: list[dict[str, Any]],
        config: dict[str, Any],
        optimizer: Optimizer,
        part: tuple[int, int] = (0, 1),
        average: bool = False,
    ) -> None:
        """Shard `model`; `groups` are those of `trainable.parameter_groups`.

        `part` is which part of every sample, of how many, this rank computes. With `average` a running
        average of the weights is kept, which `ds_config.check_saved` refuses for states on NVMe.
        """
        self._part = part
        self.stage = stage(config)
        self._config = config
        self.clip = optimizer.grad_clip
        adam = make_adamw(groups, optimizer, offloads_optimizer(config))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        new_rows = {
            names[id(parameter)]: (group["first_new_row"], group["new_row_factor"])
            for group in groups
            if "first_new_row" in group
            for parameter in group["params"]
        }
        if self.stage == 3 and (kinds := getattr(model, "gathered_whole", None)):
            set_z3_leaf_modules(model, kinds)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=adam, config=config)
        if self.stage == 0:
            self.engine.allreduce_gradients = partial(
                self.engine.allreduce_gradients, bucket_size=WHOLE_BUCKET
            )
        if self.stage == 1:
            accumulate_in_fp32(self.optimizer)
        self.world_size = self.engine.world_size
        self.device = collectives.device()
        self._state = EngineState(self.engine, self.optimizer, self.stage, names)
        self._verdict = Verdict(self.optimizer, self._state.adam, self.stage, self.engine.fp16_enabled())
        self.own_time = OwnTime(self.device)
        """What this rank takes for itself; every step tells the other ranks."""
        self.before_update: Callable[[], None] = lambda: None
        """Called before a step changes weights and moments, so that a snapshot can finish its copies."""
        if average:
            self._state.keep_averages()
        if new_rows:
            slices = [
                ScaledSlice.of(own, *new_rows[own.name]) for own in self.fragments() if own.name in new_rows
            ]
            scale_updates(self._state.adam, slices)

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        lr: float | Callable[[], float],
        sources: int,
        seed: int,
        stop: bool,
        limits: Callable[[], Limits] = lambda: NO_LIMITS,
    ) -> StepResult:
        """Make one optimizer step over the global batch; `micro_batches` are this rank's samples of it.

        Losses are divided by the global number of target tokens, so that the step is the same
        however the batch is cut among ranks and micro batches. `seed` is the step's; every micro batch of
        every rank draws its own dropout masks from it. `lr` and `limits` may be functions: they are called
        when the device has the whole backward pass before it, so that they may wait for the step before.
        """
        return self._step(micro_batches, lr, sources, seed, stop, limits)

    def _step(
        self,
        micro_batches: Sequence[MicroBatch],
        lr: float | Callable[[], float],
        sources: int,
        seed: int,
        stop: bool,
        limits: Callable[[], Limits],
    ) -> StepResult:
        micro_batches = [self._own(micro) for micro in micro_batches]
        agreed = self._agree(micro_batches, stop)
        scale = (self.world_size / agreed[0]).float()
        nats = torch.zeros(2, sources, dtype=torch.float64, device=self.device)
        for number, micro in enumerate(micro_batches):
            # Dropout, where a model has it, is a function of the position, so no random state is saved.
            torch.manual_seed(key_of("dropout", seed, collectives.rank(), number))
            source = self._moved(micro.source.astype(np.int64, copy=False))
            with self.own_time.measured():
                loss, row_nats, row_targets = self.engine(*self._to_device(micro))
            self.engine.backward(loss * scale, scale_wrt_gas=False)
            nats[0].index_add_(0, source, row_nats.detach().double())
            nats[1].index_add_(0, source, row_targets.double())
            if number + 1 < len(micro_batches):
                self.engine.step()
        nats = collectives.all_reduce_sum(nats)
        now = lr() if callable(lr) else lr
        for group in self.optimizer.param_groups:
            group["lr"] = now * group.get("lr_scale", 1.0)
        self._verdict.expect(nats[0].sum() / nats[1].sum(), limits())
        self._apply()
        return StepResult.pack(self._verdict.norm, self._verdict.skip, agreed[1], nats, agreed[2:])

    def rehearse(self, micro_batch: MicroBatch) -> None:
        """Make a step of this shape and drop it: a device that has too little memory shows it at once.

        Weights, moments, counters and random states are afterwards what they were before.

        Raises:
            torch.OutOfMemoryError: the step does not fit.
        """
        if swap_folders(self._config):
            return  # what lies on NVMe would be written for nothing
        accumulation = self.engine.gradient_accumulation_steps()
        micro_batches = [micro_batch] * min(accumulation, 2)  # the second one finds the sums of the first
        loss_scale, micro_steps = self.loss_scale, self.engine.micro_steps
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self.engine.micro_steps = accumulation - len(micro_batches)
            self._step(micro_batches, 0.0, 1, 0, False, lambda: NEVER)
        self.engine.micro_steps = micro_steps
        self._set_loss_scale(loss_scale)
        self.own_time.take()

    def _agree(self, micro_batches: Sequence[MicroBatch], stop: bool) -> torch.Tensor:
        """Sum on the device over the ranks: target tokens, requests to stop, and the seconds of each rank."""
        mine = np.zeros(2 + self.world_size)
        mine[0] = sum(int((micro.targets >= 0).sum()) for micro in micro_batches)
        mine[1] = stop
        mine[2 + collectives.rank()] = self.own_time.take()
        return collectives.all_reduce_sum(self._moved(mine))

    def _apply(self) -> None:
        """Step the optimizer unless the verdict is to skip the step."""
        self.before_update()
        if self.stage > 0:
            loss_scale = self.loss_scale
            self.engine.step()
            if not self.engine.was_step_applied():
                self._drop_gradients()
                if loss_scale and math.isfinite(self._verdict.norm):
                    self._set_loss_scale(loss_scale)  # it is skipped for its loss, not for an overflow
            return
        trained = [parameter for parameter in self.engine.module.parameters() if parameter.grad is not None]
        if self._verdict.judge(norm_of(parameter.grad for parameter in trained)):
            self.engine.zero_grad()  # without gradients the step below changes nothing
            for parameter in trained:
                parameter.grad = None
        else:
            torch.nn.utils.clip_grads_with_norm_(trained, self.clip or math.inf, self._verdict.norm)
        self.engine.step()

    def _drop_gradients(self) -> None:
        """Forget the sums of a step that was skipped.

        DeepSpeed 0.19 keeps them where the optimizer is offloaded at ZeRO-1 and 2 and gradients are summed in
        fp32 beside 16-bit ones: the next step would be made of both.
        """
        if self.stage in (1, 2):
            self.optimizer.averaged_gradients = dict.fromkeys(self.optimizer.averaged_gradients)

    @torch.no_grad()
    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return nats and target tokens of each row of an evaluation batch (of its part), [micro] each."""
        self.engine.eval()
        _, nats, targets = self.engine(*self._to_device(self._own(micro)))
        self.engine.train()
        return nats.double(), targets.double()

    @torch.no_grad()
    def score_tokens(self, micro: MicroBatch) -> torch.Tensor:
        """Return the nats of each target of an evaluation batch, [micro, seq_len]; ranks share no rows."""
        self.engine.eval()
        _, nats, _ = self.engine(*self._to_device(micro), by_token=True)
        self.engine.train()
        return nats

    def next_tokens(self, ids: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the most likely successor of the token at a place in each row: [rows] of [rows, length].

        All ranks take part, as sharded weights require.
        """
        return self.answers(ids, ids, places[:, None])[0][:, 0]

    @torch.no_grad()
    def answers(
        self, ids: np.ndarray, targets: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely successor at each of a row's places, and the nats of the target there.

        `ids` and `targets` are [rows, length], `places` and both results [rows, places]. All ranks take part,
        as sharded weights require.
        """
        self.engine.eval()
        moved = [self._moved(array) for array in (ids, targets, places)]
        best, nats = self.engine(*moved[:2], next_at=moved[2])
        self.engine.train()
        return np.asarray(best.cpu().numpy()), np.asarray(nats.double().cpu().numpy())

    def _own(self, micro: MicroBatch) -> MicroBatch:
        """This rank's part of the rows, where ranks share them."""
        return micro if self._part[1] == 1 else micro.cut(*self._part)

    def _to_device(self, micro: MicroBatch) -> Iterable[Any]:
        # Rows without a boundary of documents need no mask for them, and the model need not look for one.
        positions = micro.positions if begins_within(micro.positions) else None
        for array in (micro.input_ids, micro.targets, positions):
            yield None if array is None else self._moved(array)
        if positions is not None and getattr(self.engine.module, "by_documents", False):
            bounds, longest = document_bounds(positions)
            yield self._moved(bounds), longest

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        """A copy on the device; the host does not wait for what the device still computes."""
        tensor = torch.as_tensor(array)
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(
            self.device, non_blocking=True
        )

    @property
    def adam_step(self) -> int:
        """Steps that the optimizer has applied, as AdamW's bias correction counts them."""
        return applied_steps(self._state.adam)

    @property
    def loss_scale(self) -> dict[str, float]:
        """State of fp16's loss scaler (numbers only); empty in other precisions."""
        if not self.engine.fp16_enabled():
            return {}
        numbers = vars(self.optimizer.loss_scaler)
        return {name: value for name, value in numbers.items() if type(value) in (int, float)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every whole parameter by its name, on every rank."""
        return self._state.shapes

    @property
    def saved_bytes(self) -> int:
        """Bytes that the fragments of all ranks take on disk."""
        return self._state.saved_bytes

    def fragments(self, change: bool = False) -> Iterator[Fragment]:
        """Yield the fragments of `shares` one by one."""
        for share in self.shares(change):
            yield from share

    def shares(self, change: bool = False) -> Iterator[list[Fragment]]:
        """Yield this rank's part of the run's state; see `EngineState.shares`."""
        return self._state.shares(change)

    def restore(self, adam_step: int, loss_scale: dict[str, float]) -> None:
        """Set the counters and the computing copies of the weights, after fragments were overwritten.

        An `adam_step` of 0 is a fresh optimizer.
        """
        set_applied_steps(self._state.adam, adam_step)
        if self.engine.fp16_enabled():
            self._set_loss_scale(loss_scale)
        self._state.refresh()

    @torch.no_grad()
    def add_to_average(self, share: float) -> None:
        """Move the averaged weights by so much of the way to the weights, after a step was applied."""
        pairs = [
            (own.tensors[AVERAGE], own.tensors["weight"])
            for own in self.fragments()
            if AVERAGE in own.tensors
        ]
        for average, weight in pairs:
            average.lerp_(weight, share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Compute with the averaged weights; the weights are afterwards what they were, to the bit."""
        self.before_update()  # a snapshot may still be copying
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    @torch.no_grad()
    def _swap_average(self) -> None:
        for own in self.fragments(change=True):
            if AVERAGE in own.tensors:
                weight, average = own.tensors["weight"], own.tensors[AVERAGE]
                held = weight.clone()
                weight.copy_(average)
                average.copy_(held)
        self._state.refresh()

    def refresh(self) -> None:
        """Set the computing copies of the weights, after fragments were overwritten within a run."""
        self._state.refresh()

    def _set_loss_scale(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            setattr(self.optimizer.loss_scaler, name, value)

    def close(self) -> None:
        """Free the memory, so that the next phase's engine fits."""
        self.engine.destroy()
        clear_swapped(self._config)
        # The process group of hpZ outlives its engine, and the next engine asserts that there is none.
        deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        del self.engine, self.optimizer, self._state
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
