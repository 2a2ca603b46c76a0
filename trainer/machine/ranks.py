"""The ranks of a run, as the launcher's environment gives them: `deepspeed`, `torchrun`, `srun`, or none."""

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
    """This process among all of a run: `rank` of `world_size`, `local_rank` on its node."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def current_world() -> World:
    """Read the launcher's environment: deepspeed's and torch's names, else Slurm's (`srun`), else one rank.

    Raises:
        UserError: a rank or world size is missing or is not a number.
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
    """Return this process's rank, or 0 if the launcher's environment is incomplete."""
    try:
        return current_world().rank
    except UserError:
        return 0


def note_status(exit_code: int) -> None:
    """Append the exit code of this rank to the file `$REWARM_STATUS`, from which a batch script reads it.

    srun reports the highest status of all ranks, which is often that of a rank that was killed because
    another one had failed.
    """
    if "REWARM_STATUS" in os.environ:
        with open(os.environ["REWARM_STATUS"], "a", encoding="ascii") as file:
            file.write(f"{exit_code}\n")


def wait_for_rank0(rank: int, exit_code: int, patience_s: float = 10.0) -> None:
    """Wait on other ranks until rank 0 has printed the error; its launcher ends this rank then.

    Without the delay the launcher kills rank 0 before it has printed the error. A rank that is not ended
    within `patience_s` seconds has an error of its own. SIGTERM from the launcher exits with `exit_code`:
    this is a failure, not a stop to go on from.
    """
    if rank == 0:
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_code))
    time.sleep(patience_s)
    signal.signal(signal.SIGTERM, before)


def set_rendezvous(world: World) -> None:
    """Set the environment by which torch's process group finds its peers; keep what a launcher has set."""
    os.environ.setdefault("MASTER_ADDR", _first_slurm_node() or "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", _rendezvous_port())
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


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rendezvous_port() -> str:
    """A port that all ranks of a Slurm step derive alike, and no step beside it does; else a free one.

    Two steps of one job have two ports, and so have the first hundred steps of neighbouring jobs.
    """
    if "SLURM_JOB_ID" in os.environ:
        job, step = (int(os.environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return str(20000 + (job * 101 + step) % 20000)
    return str(free_port())
