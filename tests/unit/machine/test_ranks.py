"""What the environment of each launcher says about this process."""

import pytest

from tokenization.errors import UserError
from trainer.machine.ranks import World, current_world, rank_or_0

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
