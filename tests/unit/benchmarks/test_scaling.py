"""benchmarks/scaling.py: messages are counted by kind, and the paper's arithmetic is by hand."""

import os

import pytest
import torch
import torch.distributed as dist

from benchmarks import scaling
from benchmarks.scaling import Case, Cluster, Measured


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_every_collective_is_counted_with_its_whole_message(alone):
    def step():
        half, whole = torch.zeros(10, dtype=torch.bfloat16), torch.zeros(7)
        dist.all_reduce(half)
        dist.all_reduce(whole, async_op=True).wait()
        dist.broadcast(whole, src=0)
        dist.all_gather_into_tensor(torch.zeros(5), torch.zeros(5))
        dist.all_gather([torch.zeros(3)], torch.zeros(3))
        dist.reduce_scatter_tensor(torch.zeros(6), torch.zeros(6))

    calls, sent = scaling.counted(step)
    assert calls == {"all-reduce": 2, "broadcast": 1, "all-gather": 2, "reduce-scatter": 1}
    assert sent == {"all-reduce": 20 + 28, "broadcast": 28, "all-gather": 20 + 12, "reduce-scatter": 24}
    assert scaling.counted(lambda: None) == ({}, {})
    dist.all_reduce(torch.zeros(1))  # the methods are as they were


def test_a_ring_sends_by_the_paper():
    mixed = {"reduce-scatter": 2.0, "all-gather": 2.0}  # bytes per parameter at ZeRO-2, 16 bits
    assert scaling.sent_bytes(mixed, 4) == 3.0  # 3/4 of each
    assert scaling.sent_bytes({"all-reduce": 4.0}, 4) == 6.0
    assert scaling.sent_bytes(mixed, 1) == 0.0


@pytest.mark.parametrize(
    ("gpus", "between", "expected"),
    [(512, 50e9, 400e9), (512, 100e9, 450e9), (8, 1e9, 450e9)],
)
def test_rings_leave_a_node_through_every_card(gpus, between, expected):
    assert Cluster(gpus, 8, between, 450e9, 1e15, 0.4).bandwidth == expected


def test_a_model_on_paper():
    found = Measured(1.0, 1.0, 1000, {"all-reduce": 3}, {"all-reduce": 4000})
    cluster = Cluster(512, 8, 50e9, 450e9, 989e12, 0.4)
    row = scaling.paper([(Case(0, 8, 256, 1, {}), found)], cluster, 4_194_304).splitlines()[2]
    # 6,929,260,544 parameters of 4 bytes, twice 511/512; 46.66 GFLOP a token, 8,192 tokens on a GPU
    assert row == "| 7B | 0 | 55 | 0.14 | 0.97 | 40 % | 35 % |"


def test_overhead_is_against_one_rank():
    one = Measured(0.1, 0.1, 1000, {"all-reduce": 3}, {"all-reduce": 4000})
    two = Measured(0.2, 0.3, 1000, {"all-reduce": 3}, {"all-reduce": 4000})
    results = [(Case(0, 1, 256, 1, {}), one), (Case(0, 2, 256, 1, {}), two)]
    rows = scaling.loopback(results).splitlines()[2:]
    cores = os.cpu_count()
    assert rows == [
        f"| 0 | 1 | 100 | 100 | 1.00x | {100 / cores:.0f} % |",
        f"| 0 | 2 | 200 | 150 | 1.50x | {150 / cores:.0f} % |",
    ]
    assert scaling.messages(results).splitlines()[-1] == "| 0 | 2 | 3 | 4.00 | 4.00 |"
