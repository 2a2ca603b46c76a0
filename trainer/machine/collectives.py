"""The process group and the few collectives that the trainer uses."""

from __future__ import annotations

import datetime
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from trainer.machine.ranks import World, set_rendezvous

TIMEOUT = datetime.timedelta(minutes=60)
"""Covers the slowest save or load, not a step."""


def join_ranks(world: World) -> None:
    """Joins the process group."""
    set_rendezvous(world)
    # DeepSpeed calls collectives by names that torch renames; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        # DeepSpeed would build its shared-memory collectives and fail; without them gloo does the work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    get_accelerator().set_device(world.local_rank)
    _unlink_shared_memory(world.rank)  # a killed run's: no rank has passed the rendezvous, so none opens it
    deepspeed.init_distributed(
        dist_backend=get_accelerator().communication_backend_name(),
        timeout=TIMEOUT,
        verbose=False,
    )
    dist.barrier()  # every rank has mapped every buffer, and needs its name no longer
    _unlink_shared_memory(world.rank)


def leave_ranks() -> None:
    """Leaves the process group, after a success; after a failure no collective is tried again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _unlink_shared_memory(rank: int) -> None:
    """Takes away the name of the buffer of this rank's shared-memory collectives (CPU only).

    DeepSpeed never does: every start on a new port would leave 66 MiB in memory until the machine is
    rebooted, and a start on the port of a killed run could take what that one left for a peer's answer.
    """
    where = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{where}_{rank}").unlink(missing_ok=True)


def rank() -> int:
    """This process's number in the group."""
    return dist.get_rank()


def local_rank() -> int:
    """This process's number on its node."""
    return int(os.environ["LOCAL_RANK"])


def world_size() -> int:
    """The number of processes in the group."""
    return dist.get_world_size()


def device() -> torch.device:
    """The device of this rank."""
    return torch.device(get_accelerator().current_device_name())


def device_name() -> str:
    """The model of this rank's GPU; `cpu` without one."""
    where = device()
    return torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all ranks, on every rank (on the device)."""
    values = values.to(device())
    dist.all_reduce(values)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's `value` (any picklable object) on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def all_gather(value: Any) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def background_gather() -> Callable[[Any], list[Any]]:
    """A `from_all` for another thread, which does not meet with the training's own collectives.

    All ranks call this at the same point.
    """
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def meet(value: Any) -> list[Any]:
        boxes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(boxes, value, group=group)
        return boxes

    return meet
