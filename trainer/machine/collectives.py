"""The process group and the few collectives that the trainer uses."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from tokenization.errors import InfrastructureError, UserError
from trainer.machine.compile_cache import ops_being_built
from trainer.machine.log_lines import EVERY_RANK, logger
from trainer.machine.ranks import World, set_rendezvous
from trainer.machine.signals import must_end_abruptly

TIMEOUT = datetime.timedelta(minutes=60)
"""Longer than the slowest save or load, between which ranks wait for each other."""

PATIENCE_S = 15.0
"""How long ranks may take to meet before the log says what is waited for."""

IN_USE = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)

SHARED_GPU = re.compile(r"Duplicate GPU detected")
"""What NCCL says of two ranks on one GPU, as soon as they meet."""

LOST = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Socket ?Timeout|recvValue|sendBytes|TCPStore",
    re.IGNORECASE,
)
"""What the messages of torch's process groups hold when a rank has gone."""


def join_ranks(world: World) -> None:
    """Join the process group."""
    set_rendezvous(world)
    # DeepSpeed calls collectives by names that torch has deprecated; a user cannot change that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        # Without a compiler DeepSpeed would fail to build its shared-memory collectives; gloo replaces them.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _set_device(world.local_rank)
    _unlink_shared_memory(world.rank)  # of a killed run; no rank opens one before the rendezvous
    must_end_abruptly.set()
    with _naming_a_long_wait(world):
        deepspeed.init_distributed(
            dist_backend=get_accelerator().communication_backend_name(),
            timeout=TIMEOUT,
            verbose=False,
        )
        dist.barrier()  # every rank has mapped every buffer, so their names are not needed any more
    _unlink_shared_memory(world.rank)


def leave_ranks() -> None:
    """Leave the process group after a success; after a failure no collective may be called again."""
    if dist.is_initialized():
        dist.destroy_process_group()
    must_end_abruptly.clear()


@contextmanager
def lost_peers_named() -> Iterator[None]:
    """Turn the errors of a process group whose other ranks have gone, or cannot be met, into one line.

    Raises:
        InfrastructureError: instead of such an error.
        UserError: more ranks were started on a node than it has GPUs; waiting changes nothing.
    """
    try:
        yield
    except RuntimeError as error:  # torch has no better class for the errors of gloo
        text = " ".join(str(error).split())
        if SHARED_GPU.search(text):
            fix = "start no more ranks on a node than it has GPUs, such as `deepspeed --num_gpus N`"
            raise UserError("two ranks have one GPU", fix=fix) from error
        if IN_USE.search(text):
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise InfrastructureError(
                f"MASTER_PORT: {where} is in use by another process; start again, or choose another port, "
                "such as `deepspeed --master_port 29501`"
            ) from error
        if isinstance(error, dist.DistError) or LOST.search(text):
            raise InfrastructureError(
                f"another rank has gone or cannot be reached ({text[:200]}); "
                "see the log of the rank that ended first"
            ) from error
        raise


@contextmanager
def _naming_a_long_wait(world: World) -> Iterator[None]:
    """Say what is waited for, if it takes longer than usual: a compiler, or a rank that does not come."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    ranks = f"waiting for all {world.world_size} ranks of the launcher's environment to meet at {where}"
    met = threading.Event()

    def tell() -> None:
        told = ""
        while not met.wait(PATIENCE_S):
            ops = ", ".join(ops_being_built())
            line = f"waiting for the compiler of {ops}; this environment needs that once" if ops else ranks
            if line != told:
                logger.warning(line, extra=EVERY_RANK)
            told = line

    threading.Thread(target=tell, name="long-wait", daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _set_device(local_rank: int) -> None:
    """Take this rank's GPU: number `local_rank` of those that its process sees, which may be its own only.

    With `--gpus-per-task` each process sees its own GPUs as 0, 1, …
    """
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        local_rank %= max(accelerator.device_count(), 1)
        # DeepSpeed takes the device from these, and asserts that they agree.
        os.environ["LOCAL_RANK"] = str(local_rank)
        if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
            os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(local_rank)
    accelerator.set_device(local_rank)


def _unlink_shared_memory(rank: int) -> None:
    """Remove the name of the buffer of this rank's shared-memory collectives (CPU only).

    DeepSpeed never does: every start on a new port would leave 66 MiB in memory until the machine is
    rebooted, and a start on the port of a killed run could read that run's buffer as a peer's message.
    """
    where = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{where}_{rank}").unlink(missing_ok=True)


def rank() -> int:
    """Return this process's number in the group."""
    return dist.get_rank()


def local_rank() -> int:
    """Return this process's number on its node."""
    return int(os.environ["LOCAL_RANK"])


def world_size() -> int:
    """Return the number of processes in the group."""
    return dist.get_world_size()


def device() -> torch.device:
    """Return the device of this rank."""
    return torch.device(get_accelerator().current_device_name())


def device_name() -> str:
    """Return the model of this rank's GPU; `cpu` without one."""
    where = device()
    return torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of `values` over all ranks, on every rank (on the device)."""
    values = values.to(device())
    dist.all_reduce(values)
    return values


def broadcast(value: Any) -> Any:
    """Return rank 0's `value` (any picklable object) on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def all_gather(value: Any) -> list[Any]:
    """Return every rank's `value`, in rank order, on every rank."""
    return _gather(value, None)


def background_gather() -> Callable[[Any], list[Any]]:
    """Make an `all_gather` on a process group of its own, safe from another thread.

    All ranks must call this at the same point.
    """
    return partial(_gather, group=dist.new_group(backend="gloo", timeout=TIMEOUT))


def _gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values
