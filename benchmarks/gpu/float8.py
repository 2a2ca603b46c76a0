"""An experiment: the decoder layers' matrix products in 8 bits, with a scale for each whole tensor.

Weights, gradients and everything else stay as they are. Inputs and weights are rounded to e4m3, gradients to
e5m2 (Micikevicius et al. 2022, arXiv 2209.05433), each scaled by its own largest value at every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.layers import decoder_layers

INPUTS, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


def compute_in_float8(hf: nn.Module) -> None:
    """Let every linear map of the decoder layers compute in 8 bits, and compile the layers."""
    for layer in decoder_layers(hf):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.__class__ = Float8Linear
        layer.forward = torch.compile(layer.forward, dynamic=False)


class Float8Linear(nn.Linear):
    """A linear map without bias."""

    def forward(self, states: Tensor) -> Tensor:
        """Compute it in 8 bits."""
        found: Tensor = _Product.apply(states.flatten(0, -2), self.weight)
        return found.unflatten(0, states.shape[:-1])


def _rounded(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tensor in 8 bits, and the factor that gives its size back."""
    largest = torch.finfo(dtype).max
    factor = tensor.abs().amax().float().clamp(min=1e-12) / largest
    return (tensor.float() / factor).clamp(-largest, largest).to(dtype), factor


def _mm(left: Tensor, right: Tensor, scales: tuple[Tensor, Tensor], dtype: torch.dtype, fast: bool) -> Tensor:
    """`left @ right`, which the card wants with rows of the left and columns of the right one in memory."""
    found: Tensor = torch._scaled_mm(
        left.contiguous(),
        right.t().contiguous().t(),
        scale_a=scales[0],
        scale_b=scales[1],
        out_dtype=dtype,
        use_fast_accum=fast,
    )
    return found


class _Product(torch.autograd.Function):
    """`states @ weight.T` and both of its gradients."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        small, by = _rounded(states, INPUTS)
        matrix, size = _rounded(weight, INPUTS)
        ctx.save_for_backward(small, by, matrix, size)
        return _mm(small, matrix.t(), (by, size), states.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        small, by, matrix, size = ctx.saved_tensors
        slope, scale = _rounded(slopes[0], GRADIENTS)
        dtype = slopes[0].dtype
        of_states = _mm(slope, matrix, (scale, size), dtype, fast=False)
        of_weight = _mm(slope.t(), small, (scale, by), dtype, fast=False)
        return of_states, of_weight
