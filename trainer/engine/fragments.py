"""The fp32 weights and AdamW moments of a DeepSpeed engine as fragments, at every ZeRO stage.

Each fragment is a live tensor with its place in a parameter, which is all that saving, loading and a
change of topology need. Together the fragments of all ranks cover each parameter once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.engine.adamw import moment_bytes, moments_of
from trainer.machine import collectives
from trainer.storage.fragment import AVERAGE, MOMENTS, Fragment


class EngineState:
    """The state of one DeepSpeed engine, which it reads and changes in place."""

    def __init__(self, engine: Any, optimizer: Any, stage: int, names: dict[int, str]) -> None:
        """Take what `deepspeed.initialize` returned; `names` are the parameters' names by their `id`."""
        self.module, self.optimizer, self.stage, self.names = engine.module, optimizer, stage, names
        self.rank, self.world_size = collectives.rank(), engine.world_size
        self._exact: dict[str, torch.Tensor] = {}
        """fp32 copies, in host memory, of this rank's part of the frozen weights that compute in 16 bits."""
        self._averages: dict[str, torch.Tensor] | None = None
        """Averages of this rank's part of the trained weights; None if the run keeps none."""

    @property
    def adam(self) -> torch.optim.Optimizer:
        """AdamW of torch or DeepSpeed, below whatever ZeRO wraps around it."""
        return self.optimizer if self.stage == 0 else self.optimizer.optimizer

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every whole parameter by its name; ZeRO-3 keeps it beside the empty tensor."""
        return {
            self.names[id(parameter)]: tuple(getattr(parameter, "ds_shape", parameter.shape))
            for parameter in self.module.parameters()
        }

    @property
    def saved_bytes(self) -> int:
        """Bytes that the fragments of all ranks take on disk."""
        return sum(
            getattr(parameter, "ds_numel", parameter.numel())
            * (4 + self._trained_bytes if parameter.requires_grad else 4)
            for parameter in self.module.parameters()
        )

    @property
    def _trained_bytes(self) -> int:
        """Bytes that an element of a trained weight takes beside its own."""
        return moment_bytes(self.adam) * len(MOMENTS) + (0 if self._averages is None else 4)

    def keep_averages(self) -> None:
        """Begin an average of every trained weight, with its value of now."""
        self._averages = {}
        for share in self.shares(change=False):
            for own in share:
                self._with_average(own)

    def _with_average(self, own: Fragment) -> Fragment:
        """Give a trained fragment its average, if there are averages."""
        if self._averages is not None and own.trained:
            if own.name not in self._averages:
                self._averages[own.name] = own.tensors["weight"].clone()
            own.tensors[AVERAGE] = self._averages[own.name]
        return own

    def shares(self, change: bool) -> Iterator[list[Fragment]]:
        """Yield this rank's fragments that are in memory together: all, or with NVMe one sub-group's.

        What lies on NVMe is in memory until the next share is asked for; with `change` it is written back.
        """
        if self.stage == 3:
            shares = self._sharded(change)
        else:
            shares = iter([list(self._whole() if self.stage == 0 else self._flat())])
        for share in shares:
            yield [self._with_average(own) for own in share]

    def refresh(self) -> None:
        """Copy the fp32 weights to those that forward and backward use, after fragments were overwritten."""
        if self.stage in (1, 2):
            self.optimizer.update_lp_params()
            for parameter in self.module.parameters():
                if (exact := self._exact.get(self.names[id(parameter)])) is not None:
                    parameter.data.view(-1).copy_(exact)
        elif self.stage == 3:
            self._refresh_sharded()

    def _frozen(self, parameter: Any, computing: torch.Tensor) -> torch.Tensor:
        """Return the fp32 value of what this rank saves of a frozen weight; `computing` may be rounded.

        A phase that does not train a weight must not round it, since the next phase may train it again.
        """
        if computing.dtype == torch.float32:
            return computing
        name = self.names[id(parameter)]
        if name not in self._exact:
            self._exact[name] = computing.to("cpu", torch.float32)
        return self._exact[name]

    def _whole(self) -> Iterator[Fragment]:
        """Stage 0: every rank holds all parameters; they are dealt out to the ranks for writing."""
        for number, (name, parameter) in enumerate(self.module.named_parameters()):
            moments = moments_of(self.adam, parameter) if parameter.requires_grad else {}
            tensors = {"weight": parameter.data, **moments}
            flat = {kind: tensor.view(-1) for kind, tensor in tensors.items()}
            owned = number % self.world_size == self.rank
            yield Fragment(name, 0, tuple(parameter.shape), parameter.requires_grad, owned, flat, parameter)

    def _flat(self) -> Iterator[Fragment]:
        """Stages 1 and 2: a parameter group is one flat fp32 buffer, cut evenly among the ranks."""
        owners = {}
        for number, parameters in enumerate(self.optimizer.bit16_groups):
            for parameter in parameters:
                owners[id(parameter)] = self.optimizer.single_partition_of_fp32_groups[number]
        for number, parameter in enumerate(self.module.parameters()):
            name, shape = self.names[id(parameter)], tuple(parameter.shape)
            if not parameter.requires_grad:
                owned = number % self.world_size == self.rank
                weight = parameter.data.view(-1)
                weight = self._frozen(parameter, weight) if owned else weight
                yield Fragment(name, 0, shape, False, owned, {"weight": weight}, parameter)
            elif (link := parameter._hp_mapping) is not None:
                owner = owners[id(parameter)]
                place = link.get_hp_fragment_address()
                tensors = {"weight": owner.data, **moments_of(self.adam, owner)}
                own = {kind: tensor.narrow(0, place.start, place.numel) for kind, tensor in tensors.items()}
                begin = link.lp_fragment_address.start
                yield Fragment(name, begin, shape, True, True, own, owner, place.start)

    def _sharded(self, change: bool) -> Iterator[list[Fragment]]:
        """Stage 3: each parameter is cut evenly among the ranks, the last piece padded."""
        zero = self.optimizer
        frozen = [parameter for parameter in self.module.parameters() if not parameter.requires_grad]
        in_memory = [
            own
            for parameter in frozen
            if (own := self._piece(parameter, {"weight": self._frozen_shard(parameter)}, parameter))
        ]
        for number, parameters in enumerate(zero.fp16_groups):
            owner = zero.fp32_partitioned_groups_flat[number]
            with self._in_memory(number, change):
                tensors = {"weight": owner.data, **moments_of(self.adam, owner)}
                offsets = [zero.grad_position[zero.get_param_id(one)][1] for one in parameters]
                pieces = [
                    own
                    for parameter, offset in zip(parameters, offsets, strict=True)
                    if (own := self._piece(parameter, tensors, owner, offset))
                ]
                if zero._swappable_optimizer_subgroup(number):
                    yield pieces
                else:
                    in_memory += pieces
        if in_memory:
            yield in_memory

    def _frozen_shard(self, parameter: Any) -> torch.Tensor:
        return self._frozen(parameter, parameter.ds_tensor.data.view(-1))

    def _piece(
        self, parameter: Any, tensors: dict[str, torch.Tensor], owner: torch.Tensor, offset: int = 0
    ) -> Fragment | None:
        """Stage 3: this rank's piece of a parameter, from `offset` on in `tensors`; None if it is empty."""
        size = parameter.ds_tensor.ds_numel
        start = size * self.rank
        count = max(0, min(size, parameter.ds_numel - start))
        if count == 0:
            return None
        own = {kind: tensor.narrow(0, offset, count) for kind, tensor in tensors.items()}
        name, shape = self.names[id(parameter)], tuple(parameter.ds_shape)
        return Fragment(name, start, shape, parameter.requires_grad, True, own, owner, offset)

    @contextmanager
    def _in_memory(self, number: int, change: bool) -> Iterator[None]:
        """Stage 3: hold a sub-group's fp32 weights and moments in memory, also if they lie on NVMe."""
        zero = self.optimizer
        if not zero._swappable_optimizer_subgroup(number):
            yield
            return
        made_here = not self.adam.state[zero.fp32_partitioned_groups_flat[number]]
        zero._optimizer_states_and_gradient_swap_in(number)
        try:
            yield
        finally:  # also when a save fails half-way and the run continues
            if change or made_here:
                zero._optimizer_states_and_gradient_swap_out(number)
            else:
                zero._release_swap_buffers(number)

    def _refresh_sharded(self) -> None:
        """Stage 3: fp32 shards to computing shards, then the small parameters that stay gathered."""
        zero = self.optimizer
        zero._partition_all_parameters()
        for parameter in self.module.parameters():
            if (exact := self._exact.get(self.names[id(parameter)])) is not None:
                parameter.ds_tensor.data.view(-1).copy_(exact)
        for number in range(len(zero.fp16_groups)):
            with self._in_memory(number, change=False):
                zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        # ZeRO++'s copies date from when the model was built; DeepSpeed would keep those of frozen weights.
        for parameter in self.module.parameters():
            parameter.ds_secondary_tensor = None
