"""The cross-entropy of an output embedding by Liger's fused kernel (package `liger-kernel`, on GPUs)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.model.cross_entropy import IGNORED


def liger_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute what `cross_entropy` computes, with the same arguments and results.

    Its kernel gives the loss of each token, and a gradient that is right for their sum.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    losses, of_z, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden,
        weight[:vocab_size],
        targets,
        None,  # bias
        None,  # weights of the pieces
        IGNORED,
        z_loss,
        0.0,  # label smoothing
        "none",
        None,  # softcap
        True,  # the z-loss of each token beside its loss
        torch.float32,  # in which the weight's gradient is summed
    )
    return losses.float().sum(), (losses - of_z).detach().float()
