"""The cross-entropy of an output embedding; its gradients are made beside it, a chunk of logits at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""A target that does not count."""

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**26}
"""Logits in a chunk, by the kind of device: 64 and 256 MiB in fp32, for any vocabulary and micro batch. On
the CPU 256 to 1,024 tokens at a time are equally fast, and fewer are slower."""


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Return how many tokens' logits are held at a time."""
    return max(1, CHUNK_LOGITS["cpu" if device.type == "cpu" else "cuda"] // vocab_size)


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute softmax cross-entropy of `hidden @ weight[:vocab_size].T`, in fp32 for 16-bit inputs.

    The gradients of both factors are made in the forward pass, while a chunk of logits is there: no logits
    are kept or computed a second time, and peak memory does not grow with tokens times vocabulary. That is
    right for a sum, whose gradient is one number for all tokens. PyTorch 2.13's `linear_cross_entropy` does
    the same, as fast, and gives no losses of single tokens. The weight's gradient is summed in fp32.

    Args:
        hidden: `[tokens, hidden_size]`.
        weight: `[rows, hidden_size]`; rows from `vocab_size` on are padding, outside the softmax.
        targets: `[tokens]`, ids below `vocab_size`, or `IGNORED`.
        vocab_size: pieces of the tokenizer.
        z_loss: the factor of log²(Z) per token, which keeps logits near 0 (PaLM, arXiv 2204.02311, sec. 5).

    Returns:
        The sum over all counted tokens, z-loss included: the value that has a gradient, once; and the
        cross-entropy of each token `[tokens]`, 0 where the target is `IGNORED`, without a gradient.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        total, nats = _CrossEntropy.apply(hidden, weight, targets, vocab_size, z_loss)
        return total, nats
    with torch.no_grad():
        found = _passes(hidden, weight, targets, vocab_size, z_loss, wanted=(False, False))
    return found.total, found.nats


class _Passes(NamedTuple):
    """Both passes of all chunks: losses, and gradients of `total` where they are wanted."""

    total: Tensor
    nats: Tensor
    of_hidden: Tensor | None
    of_weight: Tensor | None


def _passes(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float, wanted: tuple[bool, bool]
) -> _Passes:
    used = weight[:vocab_size]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    nats = torch.empty(len(hidden), dtype=wide, device=hidden.device)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    of_hidden = torch.empty_like(hidden) if wanted[0] else None
    of_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if wanted[1] else None
    rows = chunk_rows(vocab_size, hidden.device)
    logits = torch.empty(min(rows, len(hidden)), vocab_size, dtype=hidden.dtype, device=hidden.device)
    for at in range(0, len(hidden), rows):
        part = slice(at, at + rows)
        goals = targets[part].unsqueeze(1)
        uncounted = goals == IGNORED
        states, goals = hidden[part].masked_fill(uncounted, 0.0), goals.masked_fill(uncounted, 0)
        chunk = torch.mm(states, used.t(), out=logits[: len(states)])
        goal_logits = chunk.gather(1, goals).to(wide)
        # In place where the logits are as wide as the softmax.
        softmax = torch.log_softmax(chunk, 1, wide, **({"out": chunk} if chunk.dtype == wide else {}))
        goal_logs = softmax.gather(1, goals).masked_fill_(uncounted, 0.0)
        nats[part] = goal_logs.squeeze(1).neg()
        log_z = (goal_logits - goal_logs).masked_fill_(uncounted, 0.0) if z_loss else None
        total += nats[part].sum() if log_z is None else nats[part].sum() + z_loss * log_z.square().sum()
        if not any(wanted):
            continue
        slopes = softmax.exp_()
        if log_z is not None:
            slopes.mul_(1 + 2 * z_loss * log_z)
        slopes.scatter_add_(1, goals, torch.full_like(goals, -1, dtype=wide))
        slopes = slopes.to(hidden.dtype)
        if of_hidden is not None:
            torch.mm(slopes, used, out=of_hidden[part])
            of_hidden[part].masked_fill_(uncounted, 0.0)
        if of_weight is not None:
            if slopes.dtype == wide:
                of_weight[:vocab_size].addmm_(slopes.t(), states)
            else:
                of_weight[:vocab_size] += slopes.t() @ states
    return _Passes(total, nats, of_hidden, of_weight)


class _CrossEntropy(torch.autograd.Function):
    """Gradients made in the forward pass; the backward pass multiplies them with that of the sum."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float
    ) -> Any:
        found = _passes(hidden, weight, targets, vocab_size, z_loss, wanted=ctx.needs_input_grad[:2])
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.gradients = found.of_hidden, found.of_weight
        ctx.mark_non_differentiable(found.nats)
        return found.total, found.nats

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, (None, None)  # the memory is free as soon as they are used
        scaled = (
            None if gradient is None else gradient.mul_(slopes[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None
