"""Recipe and ds_config become a DeepSpeed engine, and an engine becomes what the rest needs of it.

With distributed.py this is the only file that knows DeepSpeed. It offers a training step whose
result does not depend on how the batch is cut, and `fragments`: this rank's share of the fp32
weights and optimizer moments as live tensors with their places, which is all that saving,
loading and any change of topology need.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder

from trainer import distributed
from trainer.errors import Problems, UserError
from trainer.recipe import Optimizer
from trainer.rows import Rows, Stretched, stretch
from trainer.sharding import OFFLOADED, nvme_path, offloads_optimizer, stage, swap_folders

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running averages, as torch and DeepSpeed name them."""


class MicroBatch(Protocol):
    """Numpy arrays of one forward pass, as the mixer's loader and the evaluation give them."""

    @property
    def input_ids(self) -> np.ndarray:
        """[micro, seq]."""

    @property
    def targets(self) -> np.ndarray:
        """[micro, seq], -100 where nothing is to be learnt."""

    @property
    def source(self) -> np.ndarray:
        """[micro]."""

    @property
    def positions(self) -> np.ndarray | None:
        """[micro, seq], from 0 in each document; None: attention crosses documents."""


@dataclass(frozen=True)
class StepResult:
    """What a step did, on every rank alike."""

    source_nats: torch.Tensor  # [sources], summed over the global batch
    source_targets: torch.Tensor  # [sources]
    grad_norm: float
    """Global gradient norm before clipping; not finite when the step was skipped."""
    applied: bool
    """False when gradients were not finite and nothing was changed."""
    stop: bool
    """Whether any rank asked to stop after this step."""


@dataclass
class Fragment:
    """A stretch of a parameter that this rank owns, with live tensors that may be read and overwritten."""

    name: str
    start: int
    """First element within the flattened parameter."""
    shape: tuple[int, ...]
    """The whole parameter's shape."""
    trained: bool
    owned: bool
    """Whether this rank saves it; where several ranks hold a whole parameter, one of them does."""
    tensors: dict[str, torch.Tensor]
    """`weight` and, if trained, the moments: one-dimensional, fp32 (frozen weights: any dtype)."""
    owner: torch.Tensor
    """The tensor that the optimizer steps and `weight` is a part of; frozen: the weight itself."""
    offset: int = 0
    """Where in `owner`."""


@contextmanager
def sharded_loading(config: dict[str, Any]) -> Iterator[None]:
    """Within it, transformers shards a model as it builds or loads it, if the stage is 3."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    held = HfDeepSpeedConfig(config) if stage(config) == 3 else None
    try:
        yield
    finally:
        del held
        unset_hf_deepspeed_config()


def clear_swapped(config: dict[str, Any]) -> None:
    """Removes the run's files on this node's NVMe; all ranks call it while none uses them.

    What a killed run left may be of other ranks, and of other lengths, on which DeepSpeed aborts.
    """
    if folders := swap_folders(config):
        distributed.from_all(None)
        if distributed.local_rank() == 0:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        distributed.from_all(None)


def check_machine(preset: dict[str, Any], dtype: str) -> None:
    """What this machine lacks for a preset and a number format; to be asked before the ranks are joined.

    Raises:
        Problems: all of it.
    """
    device = get_accelerator().device_name()
    problems = []
    if dtype == "fp16" and not get_accelerator().is_fp16_supported():
        what, mend = f"is not what DeepSpeed computes with on this {device}", "take bf16 or fp32"
        problems.append(UserError(what, field="model.dtype", value=dtype, mend=mend))
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if preset["zero_optimization"].get(name) and device == "cpu":
            what, mend = "needs a GPU", "take ds_configs/zero3.json on this machine"
            problems.append(UserError(what, field=f"zero_optimization.{name}", mend=mend))
    if offloads_optimizer(preset) and (lacking := _lacks_for_cpu_adam()):
        what = f"needs DeepSpeedCPUAdam, which is compiled at first use, and {lacking} is missing here"
        mend = "have g++ and ninja on the PATH, or take a preset without offload"
        problems.append(UserError(what, field="zero_optimization.offload_optimizer", mend=mend))
    problems += _lacks_for_nvme(preset)
    if problems:
        raise Problems(problems)


def _lacks_for_nvme(preset: dict[str, Any]) -> list[UserError]:
    """What is missing to swap tensors out to files."""
    problems = []
    for what in OFFLOADED:
        path = nvme_path(preset, what)
        if path is not None and not os.access(path, os.W_OK | os.X_OK):
            field, mend = f"zero_optimization.{what}.nvme_path", "name a directory on each node's own disk"
            problems.append(UserError("cannot be written to", field=field, value=str(path), mend=mend))
    if swap_folders(preset) and not AsyncIOBuilder().is_compatible(verbose=False):
        mend = "install it (libaio-dev on Debian and Ubuntu, libaio-devel on others)"
        problems.append(UserError("swapping to NVMe needs libaio, which is missing here", mend=mend))
    return problems


def _lacks_for_cpu_adam() -> str | None:
    """The tool that is missing to compile it; None too where DeepSpeed was installed with it."""
    if importlib.util.find_spec("deepspeed.ops.adam.cpu_adam_op") is not None:
        return None
    tools = (os.environ.get("CXX", "c++").split()[0], "ninja")
    return next((tool for tool in tools if shutil.which(tool) is None), None)


class Engine:
    """A model under DeepSpeed, for one phase."""

    def __init__(
        self,
        model: torch.nn.Module,
        groups: list[dict[str, Any]],
        config: dict[str, Any],
        optimizer: Optimizer,
    ) -> None:
        """Shards `model`; `groups` are those of `trainable.parameter_groups`."""
        self.stage = stage(config)
        self._config = config
        self.clip = optimizer.grad_clip
        adam = _adamw(groups, optimizer, offloads_optimizer(config))
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        rows = {
            self.names[id(one)]: group["rows"]
            for group in groups
            if "rows" in group
            for one in group["params"]
        }
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=adam, config=config)
        self.world_size = self.engine.world_size
        self.device = distributed.device()
        self.before_change: Callable[[], None] = lambda: None
        """Called before a step changes weights and moments: whoever still reads them makes it wait."""
        if rows:
            stretch(self._adam(), list(self._stretched(rows)))

    # -- computing ---------------------------------------------------------------------------

    def train_step(
        self, micro_batches: Sequence[MicroBatch], lr: float, sources: int, seed: int, stop: bool
    ) -> StepResult:
        """One optimizer step over the global batch of which `micro_batches` are this rank's share.

        Losses are divided by the global number of target tokens, so that the step is the same
        however the batch is cut among ranks and micro batches.
        """
        # Dropout, where a model has it, is a function of the position, so nothing of it is saved.
        torch.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        targets = sum(int((micro.targets >= 0).sum()) for micro in micro_batches)
        agreed = distributed.total(torch.tensor([float(targets), float(stop)], dtype=torch.float64))
        scale = self.world_size / float(agreed[0])
        nats = torch.zeros(2, sources, dtype=torch.float64, device=self.device)
        for number, micro in enumerate(micro_batches):
            source = self._moved(micro.source.astype(np.int64, copy=False))
            loss, row_nats, row_targets = self.engine(*self._to_device(micro))
            self.engine.backward(loss * scale, scale_wrt_gas=False)
            nats[0].index_add_(0, source, row_nats.detach().double())
            nats[1].index_add_(0, source, row_targets.double())
            if number + 1 < len(micro_batches):
                self.engine.step()
        norm, applied = self._apply()
        nats = distributed.total(nats)
        return StepResult(nats[0], nats[1], norm, applied, bool(agreed[1] > 0))

    def _apply(self) -> tuple[float, bool]:
        """Steps the optimizer unless a gradient is not finite; every rank sees the same."""
        self.before_change()
        if self.stage > 0:
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm() or 0.0)
            return norm, self.engine.was_step_applied()
        trained = [parameter for parameter in self.engine.module.parameters() if parameter.grad is not None]
        limit = self.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(trained, limit))
        applied = math.isfinite(norm)
        if not applied:
            self.engine.zero_grad()  # without gradients the step below changes nothing
            for parameter in trained:
                parameter.grad = None
        self.engine.step()
        return norm, applied

    @torch.no_grad()
    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats and target tokens of each row of an evaluation batch, [micro] each."""
        self.engine.eval()
        _, nats, targets = self.engine(*self._to_device(micro))
        self.engine.train()
        return nats.double(), targets.double()

    def _to_device(self, micro: MicroBatch) -> Iterable[torch.Tensor | None]:
        for array in (micro.input_ids, micro.targets, micro.positions):
            yield None if array is None else self._moved(array)

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        """A copy on the device; the host does not wait for what the device still computes."""
        tensor = torch.as_tensor(array)
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(
            self.device, non_blocking=True
        )

    def _stretched(self, rows: dict[str, Rows]) -> Iterator[Stretched]:
        """This rank's part of the rows that have a learning rate of their own, and its factor."""
        for fragment in self.fragments():
            if (own := rows.get(fragment.name)) is not None:
                before = own.before(fragment.start, fragment.shape)
                count = fragment.tensors["weight"].numel()
                yield Stretched(fragment.owner, fragment.offset + before, max(0, count - before), own.factor)

    # -- saving and loading --------------------------------------------------------------------

    @property
    def adam_step(self) -> int:
        """Steps that the optimizer has applied; what AdamW's bias correction counts."""
        for state in self._adam().state.values():
            return int(state["step"])
        return 0

    @property
    def loss_scale(self) -> dict[str, float]:
        """State of fp16's loss scaler (numbers only); empty in other precisions."""
        if not self.engine.fp16_enabled():
            return {}
        numbers = vars(self.optimizer.loss_scaler)
        return {name: value for name, value in numbers.items() if type(value) in (int, float)}

    def fragments(self, change: bool = False) -> Iterator[Fragment]:
        """This rank's share of the run's state; together the ranks' shares cover each parameter once.

        What lies on NVMe is in memory until the next fragment is asked for; it goes back if it may `change`.
        """
        for share in self.shares(change):
            yield from share

    def shares(self, change: bool = False) -> Iterator[list[Fragment]]:
        """The `fragments` by what is in memory at once: all of them, or on NVMe one sub-group's."""
        if self.stage == 3:
            yield from self._sharded(change)
        else:
            yield list(self._whole() if self.stage == 0 else self._flat())

    @property
    def saved_bytes(self) -> int:
        """What the fragments of all ranks take on a disk."""
        return sum(
            getattr(parameter, "ds_numel", parameter.numel())
            * (4 * (1 + len(MOMENTS)) if parameter.requires_grad else parameter.element_size())
            for parameter in self.engine.module.parameters()
        )

    def restore(self, adam_step: int, loss_scale: dict[str, float]) -> None:
        """After fragments were overwritten: counters, and the computing copies of the weights.

        An `adam_step` of 0 is a fresh optimizer.
        """
        for state in self._adam().state.values():
            step = state["step"]
            state["step"] = torch.full_like(step, adam_step) if torch.is_tensor(step) else adam_step
        if isinstance(self._adam(), deepspeed.ops.adam.DeepSpeedCPUAdam):
            _replay_bias_correction(self._adam(), adam_step)
        if self.engine.fp16_enabled():
            for name, value in loss_scale.items():
                setattr(self.optimizer.loss_scaler, name, value)
        if self.stage in (1, 2):
            self.optimizer.update_lp_params()
        if self.stage == 3:
            self._refresh_sharded()

    def close(self) -> None:
        """Gives the memory back, so that the next phase's engine fits."""
        self.engine.destroy()
        clear_swapped(self._config)
        # hpZ's group outlives its engine, and the next engine asserts that there is none.
        deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        del self.engine, self.optimizer
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _adam(self) -> torch.optim.Optimizer:
        """torch's or DeepSpeed's AdamW below whatever ZeRO wraps around it."""
        return self.optimizer if self.stage == 0 else self.optimizer.optimizer

    def _moments(self, owner: torch.Tensor) -> dict[str, torch.Tensor]:
        """AdamW's moments of one of its tensors; made here where the first step has not done it yet."""
        state = self._adam().state[owner]
        if not state:
            on_cpu_adam = isinstance(self._adam(), deepspeed.ops.adam.DeepSpeedCPUAdam)
            state["step"] = (
                0 if on_cpu_adam else torch.zeros((), dtype=torch.float32, device=self._step_device())
            )
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(owner, dtype=torch.float32)
        return {moment: state[moment] for moment in MOMENTS}

    def _step_device(self) -> torch.device:
        """Fused AdamW counts on the device, the plain one on the host."""
        return self.device if self._adam().defaults.get("fused") else torch.device("cpu")

    def _whole(self) -> Iterator[Fragment]:
        """Stage 0: every rank holds all; parameters are dealt out to the ranks for writing."""
        rank = distributed.rank()
        for number, (name, parameter) in enumerate(self.engine.module.named_parameters()):
            moments = self._moments(parameter) if parameter.requires_grad else {}
            tensors = {"weight": parameter.data, **moments}
            flat = {kind: tensor.view(-1) for kind, tensor in tensors.items()}
            owned = number % self.world_size == rank
            yield Fragment(name, 0, tuple(parameter.shape), parameter.requires_grad, owned, flat, parameter)

    def _flat(self) -> Iterator[Fragment]:
        """Stages 1 and 2: a parameter group is one flat fp32 buffer, cut evenly among the ranks."""
        rank = distributed.rank()
        owners = {}
        for number, parameters in enumerate(self.optimizer.bit16_groups):
            for parameter in parameters:
                owners[id(parameter)] = self.optimizer.single_partition_of_fp32_groups[number]
        for number, parameter in enumerate(self.engine.module.parameters()):
            name, shape = self.names[id(parameter)], tuple(parameter.shape)
            if not parameter.requires_grad:
                owned = number % self.world_size == rank
                yield Fragment(name, 0, shape, False, owned, {"weight": parameter.data.view(-1)}, parameter)
            elif (link := parameter._hp_mapping) is not None:
                owner = owners[id(parameter)]
                place = link.get_hp_fragment_address()
                tensors = {"weight": owner.data, **self._moments(owner)}
                own = {kind: tensor.narrow(0, place.start, place.numel) for kind, tensor in tensors.items()}
                begin = link.lp_fragment_address.start
                yield Fragment(name, begin, shape, True, True, own, owner, place.start)

    def _sharded(self, change: bool) -> Iterator[list[Fragment]]:
        """Stage 3: every parameter by itself is cut evenly among the ranks, the last piece padded."""
        zero = self.optimizer
        frozen = [parameter for parameter in self.engine.module.parameters() if not parameter.requires_grad]
        everything = [
            own
            for parameter in frozen
            if (own := self._piece(parameter, {"weight": parameter.ds_tensor.data.view(-1)}, parameter))
        ]
        for number, parameters in enumerate(zero.fp16_groups):
            owner = zero.fp32_partitioned_groups_flat[number]
            with self._in_memory(number, change):
                tensors = {"weight": owner.data, **self._moments(owner)}
                offsets = [zero.grad_position[zero.get_param_id(one)][1] for one in parameters]
                pieces = [
                    own
                    for parameter, offset in zip(parameters, offsets, strict=True)
                    if (own := self._piece(parameter, tensors, owner, offset))
                ]
                if zero._swappable_optimizer_subgroup(number):
                    yield pieces
                else:
                    everything += pieces
        if everything:
            yield everything

    def _piece(
        self, parameter: Any, tensors: dict[str, torch.Tensor], owner: torch.Tensor, offset: int = 0
    ) -> Fragment | None:
        """Stage 3: this rank's share of a parameter, which `tensors` hold from `offset` on; None if empty."""
        share = parameter.ds_tensor.ds_numel
        start = share * distributed.rank()
        count = max(0, min(share, parameter.ds_numel - start))
        if count == 0:
            return None
        own = {kind: tensor.narrow(0, offset, count) for kind, tensor in tensors.items()}
        name, shape = self.names[id(parameter)], tuple(parameter.ds_shape)
        return Fragment(name, start, shape, parameter.requires_grad, True, own, owner, offset)

    @contextmanager
    def _in_memory(self, number: int, change: bool) -> Iterator[None]:
        """Stage 3: a sub-group's fp32 weights and moments are there, be they on NVMe otherwise."""
        zero = self.optimizer
        if not zero._swappable_optimizer_subgroup(number):
            yield
            return
        made_here = not self._adam().state[zero.fp32_partitioned_groups_flat[number]]
        zero._optimizer_states_and_gradient_swap_in(number)
        try:
            yield
        finally:  # also when a save fails half-way and the run goes on
            if change or made_here:
                zero._optimizer_states_and_gradient_swap_out(number)
            else:
                zero._release_swap_buffers(number)

    def _refresh_sharded(self) -> None:
        """Stage 3: fp32 shards to computing shards, then the small parameters that stay gathered."""
        zero = self.optimizer
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            with self._in_memory(number, change=False):
                zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        # ZeRO++'s copies, which are as old as the model; DeepSpeed itself would keep those of frozen weights.
        for parameter in self.engine.module.parameters():
            parameter.ds_secondary_tensor = None


def _adamw(groups: list[dict[str, Any]], optimizer: Optimizer, offload: bool) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay; the host's vectorised one where states are offloaded."""
    settings: dict[str, Any] = {
        "lr": 0.0,
        "betas": (optimizer.beta1, optimizer.beta2),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if offload:
        return deepspeed.ops.adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    # By the device that computes: DS_ACCELERATOR may say cpu where there is a GPU.
    return torch.optim.AdamW(groups, fused=distributed.device().type == "cuda", **settings)


def _replay_bias_correction(adam: Any, steps: int) -> None:
    """Brings DeepSpeedCPUAdam's hidden state to where `steps` steps have brought it, to the bit.

    Its compiled part holds the powers of the betas as running products in fp32; left to itself it
    would begin anew after a resume with a power, which differs in the last bit.
    """
    defaults = adam.defaults
    nothing = torch.zeros(4, 1)
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(
            adam.opt_id, step, 0.0, *defaults["betas"], defaults["eps"], 0.0, True, *nothing
        )
