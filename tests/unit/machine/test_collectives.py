"""The GPU of a rank, whichever of those its process sees; ranks that wait for others, or do not meet them."""

import os
import time

import pytest

from tokenization.errors import InfrastructureError, UserError
from trainer.machine import collectives
from trainer.machine.ranks import World


class Cards:
    """An accelerator of which this process sees so many."""

    def __init__(self, seen):
        self.seen, self.taken = seen, None

    def device_name(self):
        return "cuda"

    def device_count(self):
        return self.seen

    def set_device(self, number):
        self.taken = number


@pytest.mark.parametrize(
    ("seen", "local_rank", "taken"),
    [
        (8, 5, 5),  # a launcher shows all of them to every rank
        (1, 5, 0),  # srun --gpus-per-task=1 shows each rank its own as number 0
        (2, 5, 1),
        (0, 5, 0),  # none: DeepSpeed says so itself
    ],
)
def test_a_rank_takes_one_of_the_gpus_that_its_process_sees(monkeypatch, seen, local_rank, taken):
    cards = Cards(seen)
    monkeypatch.setattr(collectives, "get_accelerator", lambda: cards)
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.setenv(name, str(local_rank))
    collectives._set_device(local_rank)
    assert cards.taken == taken
    # DeepSpeed takes the device from these, and asserts that they agree.
    assert os.environ["LOCAL_RANK"] == os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == str(taken)


def test_a_long_wait_names_the_compiler_and_then_the_ranks_each_once(monkeypatch, tmp_path, log_lines):
    monkeypatch.setattr(collectives, "PATIENCE_S", 0.01)
    for name, value in (
        ("MASTER_ADDR", "host"),
        ("MASTER_PORT", "7"),
        ("TORCH_EXTENSIONS_DIR", str(tmp_path)),
    ):
        monkeypatch.setenv(name, value)
    lock = tmp_path / "py311_cpu" / "shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()

    def wait_for(lines):
        deadline = time.monotonic() + 30
        while len(log_lines) < lines and time.monotonic() < deadline:
            time.sleep(0.01)

    with collectives._naming_a_long_wait(World(0, 0, 2)):
        wait_for(1)
        lock.unlink()
        wait_for(2)
        time.sleep(0.1)
    compiler, ranks = log_lines
    assert "waiting for the compiler of shm_comm" in compiler
    assert "waiting for all 2 ranks of the launcher's environment to meet at host:7" in ranks


NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3699, invalid usage\nncclInvalidUsage: {}\nLast error:\n{}"


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        # What waiting does not cure must not come back as a requeued job.
        ("Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000", UserError, "--num_gpus N"),
        ("Connection closed by peer", InfrastructureError, "another rank has gone"),
    ],
)
def test_what_torch_says_of_other_ranks_is_one_line_with_the_right_status(text, error, line):
    with pytest.raises(error, match=line) as told, collectives.lost_peers_named():
        raise RuntimeError(NCCL.format("This usually reflects invalid usage of NCCL library.", text))
    assert len(str(told.value).splitlines()) == 1


def test_a_port_that_is_taken_names_another(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with (
        pytest.raises(InfrastructureError, match=r"node1:29500 is in use .* --master_port"),
        collectives.lost_peers_named(),
    ):
        raise RuntimeError("The server socket has failed to listen: EADDRINUSE, address already in use")
