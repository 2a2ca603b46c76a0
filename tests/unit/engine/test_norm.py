"""The norm of gradients is exact to the digits of fp32, for tensors of any size and shape."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.norm import WIDENED_AT_ONCE, norm_of


@pytest.mark.parametrize("count", [WIDENED_AT_ONCE, 2**24])
def test_many_equal_elements_by_hand(count):
    """An fp32 sum of 2**24 squares on one thread is 0.1 % low."""
    gradient = torch.full((count,), 1e-3)
    expected = math.sqrt(count) * float(torch.tensor(1e-3))
    assert norm_of([gradient]) == pytest.approx(expected, rel=6e-8)


@given(
    sizes=st.lists(st.integers(0, 3 * WIDENED_AT_ONCE), max_size=4),
    seed=st.integers(0, 9),
    exponent=st.integers(-9, 9),
)
def test_it_is_that_of_fp64(sizes, seed, exponent):
    generator = torch.Generator().manual_seed(seed)
    gradients = [10.0**exponent * torch.randn(size, generator=generator) for size in sizes]
    whole = torch.cat([torch.empty(0), *gradients]).double()
    assert norm_of(gradients) == pytest.approx(float(whole.square().sum().sqrt()), rel=6e-8)


def test_shape_and_memory_layout_do_not_matter():
    gradient = torch.arange(12.0).view(3, 4)
    assert norm_of([gradient.t()]) == norm_of([gradient]) == norm_of([*gradient])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_shows(bad):
    assert not math.isfinite(norm_of([torch.ones(3), torch.tensor([1.0, bad])]))
