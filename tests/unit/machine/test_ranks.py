"""What the environment of each launcher says about this process."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.errors import UserError
from trainer.machine.ranks import World, current_world, first_host, rank_or_0, set_rendezvous

LAUNCHED = re.compile(r"RANK|LOCAL_RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|(SLURM|OMPI|PMIX?|MPI|MV2|PALS)_.*")


@pytest.fixture
def environment(monkeypatch):
    """An environment of these launcher's variables alone."""
    for name in filter(LAUNCHED.fullmatch, list(os.environ)):
        monkeypatch.delenv(name)
    # What a test sets in `os.environ` itself is taken back by these.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def launched(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return launched


TORCH = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MVAPICH = {"MV2_COMM_WORLD_RANK": "6", "MV2_COMM_WORLD_LOCAL_RANK": "2", "MV2_COMM_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, World(0, 0, 1)),
        (TORCH, World(5, 1, 8)),
        (SLURM, World(2, 0, 4)),
        (TORCH | SLURM, World(5, 1, 8)),  # deepspeed's launcher inside of a Slurm job
        ({"SLURM_NTASKS": "4"}, World(0, 0, 1)),  # in a batch script, before srun
        (SLURM | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}, World(0, 0, 1)),  # a shell of salloc
        (SLURM | {"SLURM_STEP_NUM_TASKS": "3"}, World(2, 0, 3)),  # a smaller step of an allocation of 4
        (OPEN_MPI, World(3, 1, 4)),
        (OPEN_MPI | SLURM | {"PMIX_RANK": "3"}, World(3, 1, 4)),  # mpirun's helpers are a step of their own
        (TORCH | OPEN_MPI, World(5, 1, 8)),
        (MPICH, World(1, 1, 2)),
        (MPICH | SLURM, World(1, 1, 2)),
        (SLURM | {"PMI_RANK": "2", "PMI_SIZE": "4"}, World(2, 0, 4)),  # srun --mpi=pmi2
        (SLURM | {"PMIX_RANK": "2"}, World(2, 0, 4)),  # srun --mpi=pmix
        (MVAPICH, World(6, 2, 8)),
    ],
)
def test_launchers(environment, variables, world):
    environment(**variables)
    assert current_world() == world
    assert rank_or_0() == world.rank


@pytest.mark.parametrize("rank", ["first", None])
def test_an_incomplete_environment_names_what_to_set(environment, rank):
    environment(**({**TORCH, "RANK": rank} if rank else {"RANK": "1", "LOCAL_RANK": "0"}))
    with pytest.raises(
        UserError, match=r"environment is incomplete .*set all of RANK, LOCAL_RANK, WORLD_SIZE"
    ):
        current_world()
    assert rank_or_0() == 0


@pytest.mark.parametrize(
    "variables",
    [
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
        {"PMIX_RANK": "1"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
        TORCH | {"RANK": "8"},
        TORCH | {"RANK": "-1"},
        TORCH | {"WORLD_SIZE": "0"},
    ],
)
def test_a_rank_that_is_not_known_for_sure_is_not_taken_for_the_only_one(environment, variables):
    environment(**variables)
    with pytest.raises(UserError, match=r"the launcher.s environment (is incomplete|contradicts itself)"):
        current_world()


def rendezvous(world):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    set_rendezvous(world)
    return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


@pytest.mark.parametrize("job", [OPEN_MPI | {"PMIX_NAMESPACE": "prterun-n1-77@1"}, OPEN_MPI, MPICH])
def test_the_ranks_of_an_mpi_job_meet_and_those_of_another_job_elsewhere(environment, job):
    environment(**job)
    meeting = {rendezvous(World(rank, rank, 2)) for rank in range(2)}
    assert len(meeting) == 1
    if "PMIX_NAMESPACE" in job:
        environment(PMIX_NAMESPACE="prterun-n1-78@1")
        assert rendezvous(World(0, 0, 2)) not in meeting


def test_ranks_on_several_hosts_are_told_what_to_set_unless_slurm_names_the_first_host(environment):
    environment(**OPEN_MPI, SLURM_JOB_ID="7")
    environment(OMPI_COMM_WORLD_LOCAL_SIZE="2")
    with pytest.raises(UserError, match="MASTER_ADDR: is not set, and OMPI_COMM_WORLD_LOCAL_SIZE says"):
        rendezvous(World(3, 1, 4))
    environment(SLURM_JOB_NODELIST="n[3-4]", SLURM_STEP_NODELIST="n4")
    assert rendezvous(World(3, 1, 4))[0] == "n3"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("n1,n2", "n1"),
        ("gpu-[03-07,9],login", "gpu-03"),
        ("gpu[9,03-07]", "gpu9"),
        ("rack[1-2]node[008-9]", "rack1node008"),
        ("a-1.cluster.example,b[1-2]", "a-1.cluster.example"),
        ("n[1-2]-ib,n3", "n1-ib"),
    ],
)
def test_the_first_host_of_a_node_list_is_known_without_slurm_s_commands(
    environment, monkeypatch, nodes, first
):
    monkeypatch.setenv("PATH", "")
    assert first_host(nodes) == first
    environment(**SLURM, SLURM_STEP_NODELIST=nodes, SLURM_JOB_ID="7")
    assert rendezvous(World(2, 0, 4))[0] == first


@given(job=st.integers(1, 2**31), steps=st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True))
def test_steps_of_a_slurm_job_and_jobs_beside_it_have_ports_of_their_own(job, steps):
    def port(job, step):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_JOB_ID", str(job))
            patch.setenv("SLURM_STEP_ID", str(step))
            patch.setenv("MASTER_ADDR", "127.0.0.1")
            for name in ("MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
                patch.setenv(name, "x")  # restored afterwards
            patch.delenv("MASTER_PORT")
            set_rendezvous(World(0, 0, 2))
            return int(os.environ["MASTER_PORT"])

    one, other = steps
    assert port(job, one) == port(job, one), "all ranks of a step meet"
    assert len({port(job, one), port(job, other), port(job + 1, one)}) == 3
    assert 20000 <= port(job, one) < 40000
