"""Before weights are loaded: the sum that must come back, the odd clock, and who is named."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.run.preflight import (
    compare_sum,
    describe_wrong_sums,
    idle_gpus,
    known_numbers,
    known_sum,
    odd_clock,
)


@given(st.integers(1, 40), st.integers(0, 100))
def test_the_known_sum_is_that_of_all_ranks_whatever_the_order(world_size, more):
    count = 2 * world_size + more
    numbers = [known_numbers(rank, world_size, count) for rank in range(world_size)]
    for order in (numbers, numbers[::-1]):
        assert compare_sum(sum(order), known_sum(world_size, count)) is None


def test_the_sum_of_many_ranks_is_exact_in_fp32():
    assert float(known_sum(2**16, 2**18).max()) < 2**24


@given(st.integers(2, 9), st.data())
def test_a_wrong_contribution_names_who_gave_it(world_size, data):
    liar = data.draw(st.integers(0, world_size - 1))
    numbers = [known_numbers(rank, world_size, 64) for rank in range(world_size)]
    numbers[liar] = numbers[liar] * 2
    wrong = compare_sum(sum(numbers), known_sum(world_size, 64))
    line = describe_wrong_sums([wrong] * world_size, [f"host{rank}" for rank in range(world_size)])
    assert f"on every rank, from what rank {liar} (host host{liar}) gave: " in line


@pytest.mark.parametrize("bad", [4.0, float("nan"), float("inf")])
def test_the_rank_that_got_a_wrong_sum_is_named(bad):
    expected = known_sum(3, 32)
    got = expected.clone()
    got[20] = bad
    line = describe_wrong_sums([None, None, compare_sum(got, expected)], ["a", "a", "b"])
    assert line.startswith(
        "an all-reduce of known numbers comes back wrong on rank 2 (host b): 1 of 32 numbers, "
    )
    assert f"number 20 is {bad} and not {float(expected[20])}" in line
    assert describe_wrong_sums([None, None], ["a", "b"]) is None


@pytest.mark.parametrize(
    ("times", "rank", "apart"),
    [
        ([0.0, 0.1, 0.0], 1, 0.1),
        ([50.0, 50.0, 20.0, 50.5], 2, -30.0),
        ([5.0], 0, 0.0),
        ([1.0, 91.0], 1, 90.0),
    ],
)
def test_the_clock_that_is_the_farthest_from_the_middle_is_the_odd_one(times, rank, apart):
    assert odd_clock(times) == (rank, pytest.approx(apart))


def test_numbers_are_what_the_network_carries():
    assert known_numbers(0, 2, 8).dtype == torch.float32


@pytest.mark.parametrize(("world_size", "gpus", "told"), [(1, 8, True), (1, 1, False), (8, 8, False)])
def test_gpus_that_one_rank_leaves_idle_are_told_with_the_launcher(world_size, gpus, told):
    line = idle_gpus(world_size, gpus)
    assert (line is not None) == told
    assert not told or f"{gpus} GPUs: `deepspeed launch/train.py RECIPE`" in line
