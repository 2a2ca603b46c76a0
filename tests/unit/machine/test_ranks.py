"""What the environment of each launcher says about this process."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.errors import UserError
from trainer.machine.ranks import World, current_world, rank_or_0, set_rendezvous

NAMES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """An environment of these launcher's variables alone."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def launched(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return launched


TORCH = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, World(0, 0, 1)),
        (TORCH, World(5, 1, 8)),
        (SLURM, World(2, 0, 4)),
        (TORCH | SLURM, World(5, 1, 8)),  # deepspeed's launcher inside of a Slurm job
        ({"SLURM_NTASKS": "4"}, World(0, 0, 1)),  # in a batch script, before srun
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
