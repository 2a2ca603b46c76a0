"""What the launcher's environment says: `deepspeed`, `torchrun`, `srun`, or nothing at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

from tokenization.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `world_size`, `local_rank` on its node."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def current_world() -> World:
    """Reads the launcher's environment: deepspeed's and torch's names, else Slurm's (`srun`), else alone.

    Raises:
        UserError: a rank or world size is missing or no number.
    """
    if "RANK" in os.environ:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif "SLURM_STEP_ID" in os.environ:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    else:
        return World()
    try:
        return World(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the launcher's environment is incomplete ({error})", fix=f"set all of {', '.join(names)}"
        ) from error


def rank_or_0() -> int:
    """This process's rank, and 0 where the launcher's environment does not tell."""
    try:
        return current_world().rank
    except UserError:
        return 0


def note_status(exit_code: int) -> None:
    """Tells the batch script, where one waits for it, what this rank fails with.

    srun reports the highest status of all ranks: often that of one that was ended for another's failure.
    """
    if "REWARM_STATUS" in os.environ:
        with open(os.environ["REWARM_STATUS"], "a", encoding="ascii") as file:
            file.write(f"{exit_code}\n")


def wait_for_rank0(rank: int, exit_code: int, patience_s: float = 10.0) -> None:
    """Gives rank 0 the time to say what is wrong for all; its launcher ends the other ranks then.

    A rank that left before would have rank 0 ended before it speaks, and nobody would know why. Whoever is
    still there afterwards has a trouble of its own. The end by the launcher is a failure with `exit_code`,
    not a stop to go on from.
    """
    if rank == 0:
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_code))
    time.sleep(patience_s)
    signal.signal(signal.SIGTERM, before)


def set_rendezvous(world: World) -> None:
    """Sets the environment by which torch's process group finds its peers; keeps what a launcher has set."""
    os.environ.setdefault("MASTER_ADDR", _first_slurm_node() or "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", _port())
    os.environ.update(
        RANK=str(world.rank), LOCAL_RANK=str(world.local_rank), WORLD_SIZE=str(world.world_size)
    )


def _first_slurm_node() -> str | None:
    """The first host of the job step, where rank 0 runs."""
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if nodes is None:
        return None
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False
    )
    return listed.stdout.split("\n")[0] or None


def _port() -> str:
    """A port that every rank of a Slurm job derives alike and two jobs do not share; alone, any free one."""
    if "SLURM_JOB_ID" in os.environ:
        return str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
