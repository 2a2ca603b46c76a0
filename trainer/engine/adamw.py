"""AdamW with decoupled weight decay, on the device or in host memory."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch

from trainer.machine import collectives
from trainer.recipe.schema import Optimizer


def make_adamw(groups: list[dict[str, Any]], optimizer: Optimizer, offload: bool) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay; the host's vectorised one where states are offloaded."""
    settings: dict[str, Any] = {
        "lr": 0.0,
        "betas": (optimizer.beta1, optimizer.beta2),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if offload:
        return deepspeed.ops.adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    # By the device that computes: DS_ACCELERATOR may say cpu where there is a GPU.
    return torch.optim.AdamW(groups, fused=collectives.device().type == "cuda", **settings)


def replay_bias_correction(adam: Any, steps: int) -> None:
    """Brings DeepSpeedCPUAdam's hidden state to where `steps` steps have brought it, to the bit.

    Its compiled part holds the powers of the betas as running products in fp32; left to itself it
    would begin anew after a resume with a power, which differs in the last bit.
    """
    defaults = adam.defaults
    nothing = torch.zeros(4, 1)
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(
            adam.opt_id, step, 0.0, *defaults["betas"], defaults["eps"], 0.0, True, *nothing
        )
