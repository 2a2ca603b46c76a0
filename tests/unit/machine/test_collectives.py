"""The GPU of a rank, whichever of the node's GPUs its process sees."""

import os

import pytest

from trainer.machine import collectives


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
