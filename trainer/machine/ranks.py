"""The ranks of a run, from the environment of the launcher: `deepspeed`, `torchrun`, MPI, `srun`, or none."""

from __future__ import annotations

import os
import re
import socket
import zlib
from dataclasses import dataclass

from tokenization.errors import UserError
from trainer.machine.launcher import launchers


@dataclass(frozen=True)
class World:
    """This process among all of a run: `rank` of `world_size`, `local_rank` on its node."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


LAUNCHERS = (
    ("RANK", ("RANK", "LOCAL_RANK", "WORLD_SIZE")),  # deepspeed, torchrun, accelerate
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE")),
    ("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE")),
    ("MPI_LOCALRANKID", ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE")),  # MPICH, Intel MPI
    ("PALS_LOCAL_RANKID", ("PALS_RANKID", "PALS_LOCAL_RANKID", "PALS_SIZE")),  # Cray's mpiexec
    ("SLURM_STEP_ID", ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")),  # srun
    ("PMI_RANK", ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE")),
    ("PMIX_RANK", ("RANK", "LOCAL_RANK", "WORLD_SIZE")),  # it does not say of how many
)
"""A variable by which a launcher is known, and those that name rank, local rank and world size.

An MPI is looked for before Slurm, since `mpirun` starts its helpers as a Slurm step of one task a node.
"""

MPI_JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri", "PMI_PORT", "PALS_APID")
"""What the ranks of an MPI job have in common, and other jobs do not."""

SLURM_OWN_STEPS = 4294967290
"""The lowest number of the steps that Slurm makes by itself: a shell of `salloc` is one, and not a rank."""


def current_world() -> World:
    """Read the launcher's environment; without a launcher this process is the only rank.

    Raises:
        UserError: a rank or world size is missing, is not a number, or does not fit the others.
    """
    names = next((names for mark, names in LAUNCHERS if mark in os.environ), None)
    if names is None or (names[0] == "SLURM_PROCID" and _is_slurm_shell()):
        return World()
    if names[0] == "SLURM_PROCID" and "SLURM_STEP_NUM_TASKS" in os.environ:
        names = (*names[:2], "SLURM_STEP_NUM_TASKS")  # SLURM_NTASKS may be that of the allocation
    try:
        world = World(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the launcher's environment is incomplete ({error})", fix=f"set all of {', '.join(names)}"
        ) from error
    if not (0 <= world.rank < world.world_size and world.local_rank >= 0):
        shown = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise UserError(
            f"the launcher's environment contradicts itself ({shown})", fix="start every rank again"
        )
    return world


def _is_slurm_shell() -> bool:
    """Tell whether this is an interactive step, in which a person types, or a batch script."""
    try:
        return int(os.environ["SLURM_STEP_ID"]) >= SLURM_OWN_STEPS
    except ValueError:
        return False


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


def set_rendezvous(world: World) -> None:
    """Set the environment by which torch's process group finds its peers; keep what a launcher has set.

    Raises:
        UserError: the ranks are on several hosts, and none is named where they can meet.
    """
    alone = world.world_size == 1
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1" if alone else _first_slurm_node() or _own_host(world))
    os.environ.setdefault("MASTER_PORT", _rendezvous_port(world))
    os.environ.update(
        RANK=str(world.rank), LOCAL_RANK=str(world.local_rank), WORLD_SIZE=str(world.world_size)
    )


def _first_slurm_node() -> str | None:
    """The first host of the job step, or of the job in which an MPI starts the ranks: rank 0 runs there."""
    mpi = any(name in os.environ for name, _ in LAUNCHERS[1:5])
    nodes = os.environ.get("SLURM_JOB_NODELIST" if mpi else "SLURM_STEP_NODELIST")
    return first_host(nodes) if nodes else None


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: `gpu-[03-07,9],login` → `gpu-03`.

    Slurm's `scontrol show hostnames` says the same, but is missing in containers.
    """
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _own_host(world: World) -> str:
    """This host, where all ranks are if the launcher does not say otherwise."""
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
        if name in os.environ and int(os.environ[name]) < world.world_size:
            raise UserError(
                f"is not set, and {name} says that other hosts have ranks too",
                field="MASTER_ADDR",
                fix="set it to rank 0's host on every rank, and MASTER_PORT to a free port there",
            )
    return "127.0.0.1"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rendezvous_port(world: World) -> str:
    """A port that all ranks of a job derive alike, and no job beside it does; for one rank any free one.

    Two steps of one Slurm job have two ports, and so have the first hundred steps of neighbouring jobs. An
    MPI is asked before Slurm, to which the ranks of an MPI job may belong to steps of their own, or to none.
    """
    if world.world_size == 1:
        return str(free_port())
    mpi_job = next((os.environ[name] for name in MPI_JOBS if name in os.environ), None)
    if mpi_job is None and "SLURM_JOB_ID" in os.environ:
        job, step = (int(os.environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return str(20000 + (job * 101 + step) % 20000)
    if mpi_job is None:  # all ranks are on this host, or the user would have set MASTER_PORT
        mpi_job = "".join(str(launcher.pid) for launcher in launchers()[:1])
    return str(20000 + zlib.crc32(mpi_job.encode()) % 20000)
