"""AdamW with decoupled weight decay, on the device or in host memory."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch

from trainer.recipe.schema import Optimizer
from trainer.storage.fragment import MOMENTS


def make_adamw(groups: list[dict[str, Any]], optimizer: Optimizer, offload: bool) -> torch.optim.Optimizer:
    """Make AdamW with decoupled weight decay: DeepSpeed's vectorised one for `offload`, else torch's."""
    settings: dict[str, Any] = {
        "lr": 0.0,
        "betas": (optimizer.beta1, optimizer.beta2),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if offload:
        return deepspeed.ops.adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def moments_of(adam: torch.optim.Optimizer, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return AdamW's moments of a tensor that it steps; made here if the first step has not made them."""
    state = adam.state[tensor]
    if not state:
        # Fused AdamW counts its steps on the device, DeepSpeed's in an int.
        state["step"] = 0 if _on_host(adam) else torch.zeros((), dtype=torch.float32, device=tensor.device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(tensor, dtype=torch.float32)
    return {moment: state[moment] for moment in MOMENTS}


def applied_steps(adam: torch.optim.Optimizer) -> int:
    """Return how many steps AdamW has applied, as its bias correction counts them."""
    return next((int(state["step"]) for state in adam.state.values()), 0)


def set_applied_steps(adam: torch.optim.Optimizer, steps: int) -> None:
    """Set the step count of AdamW's bias correction; 0 for a fresh optimizer."""
    for state in adam.state.values():
        step = state["step"]
        state["step"] = torch.full_like(step, steps) if torch.is_tensor(step) else steps
    if _on_host(adam):
        _replay_bias_correction(adam, steps)


def _on_host(adam: torch.optim.Optimizer) -> bool:
    return isinstance(adam, deepspeed.ops.adam.DeepSpeedCPUAdam)


def _replay_bias_correction(adam: Any, steps: int) -> None:
    """Bring the hidden state of DeepSpeedCPUAdam to what it is after `steps` steps, to the last bit.

    Its compiled part holds the powers of the betas as running products in fp32. After a resume it would
    compute them as powers, which differ in the last bit.
    """
    defaults = adam.defaults
    nothing = torch.zeros(4, 1)
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(
            adam.opt_id, step, 0.0, *defaults["betas"], defaults["eps"], 0.0, True, *nothing
        )
