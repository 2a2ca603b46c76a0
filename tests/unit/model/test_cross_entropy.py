"""The fused cross-entropy against the closed formula in fp64, for any cut into chunks."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from trainer.model import cross_entropy as room
from trainer.model.cross_entropy import IGNORED, cross_entropy

HIDDEN = 8


def formula(
    hidden: Tensor, weight: Tensor, targets: Tensor, pieces: int, z_loss: float
) -> tuple[Tensor, Tensor]:
    """(total, nats) as the definitions have it."""
    logits = hidden @ weight[:pieces].T
    log_z = logits.exp().sum(dim=1).log()
    counted = targets != IGNORED
    nats = torch.where(counted, log_z - logits.gather(1, targets.clamp_min(0)[:, None])[:, 0], 0.0)
    return (nats + z_loss * torch.where(counted, log_z**2, 0.0)).sum(), nats


@given(
    tokens=st.integers(1, 12),
    pieces=st.integers(2, 9),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 14),
    z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
    slope=st.sampled_from([1.0, 0.25]),
    seed=st.integers(0, 99),
)
def test_losses_and_gradients_are_those_of_the_formula(tokens, pieces, padding, chunk, z_loss, slope, seed):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, HIDDEN, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(pieces + padding, HIDDEN, generator=random, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, pieces, (tokens,), generator=random)
    targets[torch.rand(tokens, generator=random) < 0.3] = IGNORED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_LOGITS", {"cpu": chunk * pieces})
        total, nats = cross_entropy(hidden, weight, targets, vocab_size=pieces, z_loss=z_loss)
        (total * slope).backward()
        with torch.no_grad():
            scored = cross_entropy(hidden, weight, targets, vocab_size=pieces, z_loss=z_loss)
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected_total, expected_nats = formula(hidden, weight, targets, pieces, z_loss)
    (expected_total * slope).backward()
    torch.testing.assert_close((total, nats), (expected_total, expected_nats), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scored, (total, nats), rtol=0, atol=0)
    torch.testing.assert_close(found, (hidden.grad, weight.grad), rtol=1e-10, atol=1e-10)
    assert not nats.requires_grad
    assert not scored[0].requires_grad


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_factor_gets_no_gradient_and_the_other_the_same_one(frozen):
    def gradients(trained: tuple[bool, bool]) -> list[Tensor | None]:
        torch.manual_seed(0)
        factors = [torch.randn(5, HIDDEN), torch.randn(7, HIDDEN)]
        for factor, wanted in zip(factors, trained, strict=True):
            factor.requires_grad_(wanted)
        cross_entropy(*factors, torch.tensor([0, 1, IGNORED, 6, 2]), vocab_size=7)[0].backward()
        return [factor.grad for factor in factors]

    both, one = gradients((True, True)), gradients((frozen != "hidden", frozen != "weight"))
    kept = 1 if frozen == "hidden" else 0
    assert one[1 - kept] is None
    torch.testing.assert_close(one[kept], both[kept], rtol=0, atol=0)


def test_a_target_that_does_not_count_spreads_no_infinity():
    hidden, weight = torch.randn(3, HIDDEN), torch.randn(7, HIDDEN)
    hidden[1] = float("inf")
    hidden.requires_grad_()
    weight.requires_grad_()
    total, nats = cross_entropy(hidden, weight, torch.tensor([1, IGNORED, 2]), vocab_size=7)
    total.backward()
    assert total.isfinite()
    assert nats[1] == 0
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_factors_have_losses_in_fp32_and_a_weight_gradient_summed_in_fp32(dtype, monkeypatch):
    torch.manual_seed(0)
    tokens, pieces = 512, 11
    hidden = torch.randn(tokens, HIDDEN).to(dtype).requires_grad_()
    weight = torch.randn(pieces, HIDDEN).to(dtype).requires_grad_()
    targets = torch.randint(0, pieces, (tokens,))
    monkeypatch.setattr(room, "CHUNK_LOGITS", {"cpu": pieces})  # a token at a time: 512 sums
    total, nats = cross_entropy(hidden, weight, targets, vocab_size=pieces)
    total.backward()
    assert total.dtype == nats.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    wide = weight.detach().double().requires_grad_()
    formula(hidden.detach().double(), wide, targets, pieces, 0.0)[0].backward()
    error = (weight.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert error < 2 * torch.finfo(dtype).eps, "512 sums in 16 bits would have lost more"


def test_ligers_kernel_gives_the_same():
    # On a GPU as it is; on the CPU in Triton's interpreter, if TRITON_INTERPRET=1 was set at the start.
    pytest.importorskip("liger_kernel")
    from trainer.model.liger import liger_cross_entropy

    where = "cuda" if torch.cuda.is_available() else "cpu"
    if where == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    found = []
    for loss in (cross_entropy, liger_cross_entropy):
        torch.manual_seed(0)
        hidden = torch.randn(6, HIDDEN, device=where, requires_grad=True)
        weight = torch.randn(14, HIDDEN, device=where, requires_grad=True)
        targets = torch.tensor([1, 2, IGNORED, 4, 5, 10], device=where)
        total, nats = loss(hidden, weight, targets, vocab_size=11, z_loss=0.1)
        (total * 0.25).backward()
        found.append((total, nats, hidden.grad, weight.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
