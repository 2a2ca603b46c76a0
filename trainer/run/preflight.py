"""What the machines must show before weights are loaded: clocks, free disk, and an all-reduce that is right.

That all ranks have the same recipe, code, text and run directory is checked in `agreement`.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenization.errors import InfrastructureError, UserError
from trainer.machine import collectives
from trainer.machine.devices import count_devices
from trainer.machine.log_lines import logger
from trainer.machine.ranks import World
from trainer.plan.cost import checkpoint_bytes
from trainer.plan.make import Plan
from trainer.plan.memory import WIDTHS
from trainer.plan.render import GIB
from trainer.run.identity import code_version, name_ranks
from trainer.storage.shipped import train_words

CLOCK_WARNING_S, CLOCK_LIMIT_S = 5.0, 60.0
"""How far the ranks' clocks may be apart before a line says so, and before the run is refused: what is read
of a run from another machine, such as whether it lives, is wrong by as much."""

REDUCED_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 24}
"""How many fp32 numbers are summed, by kind of device: enough that the time is the network's."""


def check_machines(plan: Plan, world: World) -> None:
    """Check clocks, free disk and the all-reduce, on all ranks together, and log what was found in a line.

    Raises:
        UserError: the clocks are too far apart; it names the odd rank and its host.
        InfrastructureError: the disk has no room for checkpoints, or an all-reduce comes back wrong.
    """
    hosts = collectives.all_gather(socket.gethostname())
    found = [
        f"{world.world_size} rank{'s' * (world.world_size > 1)} on {len(set(hosts))} "
        f"host{'s' * (len(set(hosts)) > 1)} with code {code_version()}",
        _check_free_disk(plan, world),
    ]
    if world.world_size > 1:
        found += [_check_clocks(hosts), _check_all_reduce(world, hosts)]
    logger.info(f"preflight: {'; '.join(found)}")
    on_gpus = collectives.device().type == "cuda"
    if idle := idle_gpus(world.world_size, count_devices() if on_gpus else 1):
        logger.warning(idle)


def idle_gpus(world_size: int, gpus: int) -> str | None:
    """Say that a run of one rank, as `rewarm train` starts it without a launcher, leaves GPUs idle."""
    if world_size > 1 or gpus <= 1:
        return None
    launch = f"`deepspeed {train_words()} RECIPE`"
    return f"the run has 1 rank, and this machine has {gpus} GPUs: {launch} starts a rank on each of them"


def _check_free_disk(plan: Plan, world: World) -> str:
    """Check on rank 0 that two checkpoints have room, the newest one of the run included."""
    recipe = plan.recipe
    width, average = WIDTHS[recipe.optimizer.state_dtype], recipe.model.average is not None
    size = checkpoint_bytes(plan.model_config, width, average)
    needed = size if plan.checkpoint else 2 * size
    directory = plan.recipe.directory
    free = shutil.disk_usage(directory).free if world.rank == 0 else 0
    free = collectives.broadcast(free)
    line = f"{free / GIB:,.1f} GiB free for checkpoints of {size / GIB:,.2f} GiB"
    if free < needed:
        line = f"{directory}: {free:,} bytes are free, and {needed:,} are needed for checkpoints"
        if plan.recipe.checkpoint.on_failure == "stop":
            raise InfrastructureError(f"{line}; make room there, or choose another run_dir")
        logger.warning(line)
    return line


def _check_clocks(hosts: Sequence[str]) -> str:
    collectives.all_gather(None)  # so that all look at their clocks at the same moment
    times = collectives.all_gather(time.time())
    odd, apart = odd_clock(times)
    line = f"the clock of {name_ranks([odd], hosts)} is {apart:+.1f} s from the median of all"
    if abs(apart) >= CLOCK_LIMIT_S:
        raise UserError(
            line, fix=f"set the time of that machine: at most {CLOCK_LIMIT_S:.0f} s are tolerated"
        )
    if abs(apart) >= CLOCK_WARNING_S:
        logger.warning(line)
    return f"clocks within {max(times) - min(times):.2f} s"


def odd_clock(times: Sequence[float]) -> tuple[int, float]:
    """Return the rank whose clock is the farthest from the (lower) median one, and by how many seconds."""
    median = sorted(times)[(len(times) - 1) // 2]
    odd = max(range(len(times)), key=lambda rank: abs(times[rank] - median))
    return odd, times[odd] - median


@dataclass(frozen=True)
class WrongSum:
    """What one rank got back that is not the sum."""

    count: int
    of: int
    place: int
    """Of the first wrong number."""
    got: float
    expected: float


def known_numbers(rank: int, world_size: int, count: int) -> torch.Tensor:
    """Return what `rank` gives into the all-reduce: whole numbers, [count] in fp32, which add up exactly.

    At place K < `world_size` only rank K gives a number other than 0, so that a wrong one tells who gave it.
    """
    numbers = (torch.arange(count) % 17 * (rank % 16 + 1)).float()
    numbers[:world_size] = 0.0
    numbers[rank] = rank + 1.0
    return numbers


def known_sum(world_size: int, count: int) -> torch.Tensor:
    """Return the sum of `known_numbers` over all ranks."""
    numbers = (torch.arange(count) % 17 * sum(rank % 16 + 1 for rank in range(world_size))).float()
    numbers[:world_size] = torch.arange(1, world_size + 1).float()
    return numbers


def compare_sum(got: torch.Tensor, expected: torch.Tensor) -> WrongSum | None:
    """Return in what a sum is wrong, or None; NaN is wrong."""
    wrong = (got != expected).nonzero().flatten()
    if not len(wrong):
        return None
    place = int(wrong[0])
    return WrongSum(len(wrong), len(got), place, float(got[place]), float(expected[place]))


def describe_wrong_sums(wrong: Sequence[WrongSum | None], hosts: Sequence[str]) -> str | None:
    """Name in a line the ranks that got a wrong sum; if all did, the rank that gave a wrong number."""
    bad = [(rank, found) for rank, found in enumerate(wrong) if found is not None]
    if not bad:
        return None
    _, first = bad[0]
    what = f"{first.count:,} of {first.of:,} numbers, of which number {first.place} is {first.got} "
    what += f"and not {first.expected}"
    where = f"on {name_ranks([rank for rank, _ in bad], hosts)}"
    if len(bad) == len(wrong):
        where = "on every rank"
        if first.place < len(wrong):
            where += f", from what {name_ranks([first.place], hosts)} gave"
    return f"an all-reduce of known numbers comes back wrong {where}: {what}"


def _check_all_reduce(world: World, hosts: Sequence[str]) -> str:
    """Sum known numbers over all ranks, twice: the first time sets up the network, the second is timed."""
    device = collectives.device()
    count = max(REDUCED_NUMBERS.get(device.type, 1 << 20), 2 * world.world_size)
    mine, expected = known_numbers(world.rank, world.world_size, count), known_sum(world.world_size, count)
    wrong, seconds = None, 0.0
    for _ in range(2):
        numbers = mine.clone().to(device)
        started = time.perf_counter()
        numbers = collectives.all_reduce_sum(numbers)
        numbers[-1].item()  # waits for the device
        seconds = time.perf_counter() - started
        wrong = wrong or compare_sum(numbers.cpu(), expected)
    line = describe_wrong_sums(collectives.all_gather(wrong), hosts)
    if line is not None:
        raise InfrastructureError(f"{line}; a device, a node or its network is faulty: leave it out")
    slowest = max(collectives.all_gather(seconds))
    sent = 4 * count * 2 * (world.world_size - 1) / world.world_size  # bytes, as NCCL's tests count them
    speed = sent / slowest / 1e9
    return f"all-reduce of {4 * count / 2**20:.0f} MiB is right on every rank, {speed:.2f} GB/s bus bandwidth"
