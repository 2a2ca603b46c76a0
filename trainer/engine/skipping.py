"""Whether a step is applied: decided from its gradients and its loss, where they are.

The host reads nothing of it. Fused AdamW leaves weights, moments and its count of steps as they are where a
flag on the device says so; only for an optimizer in offloaded memory, and in fp16 with its loss scale, the
host must read the flag before it lets them step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero.utils import get_norm_dtype

from trainer.engine.adamw import skips_on_device


@dataclass(frozen=True)
class Limits:
    """A step whose loss or gradient norm is above these is skipped."""

    loss: float = math.inf
    """Nats per target token."""
    grad_norm: float = math.inf


NO_LIMITS = Limits()

NEVER = Limits(loss=-math.inf, grad_norm=-math.inf)
"""Every step is skipped."""


class Verdict:
    """Judges each step of one DeepSpeed engine, before its optimizer changes anything."""

    def __init__(self, optimizer: Any, adam: torch.optim.Optimizer, stage: int, fp16: bool) -> None:
        """Take DeepSpeed's `optimizer` and the AdamW in it; the checks of ZeRO are replaced by this one."""
        self._adam, self._fp16 = adam, fp16
        self.on_device = skips_on_device(adam) and not fp16
        """Whether the host does not wait for the device."""
        self._loss, self._limits = torch.zeros(()), NO_LIMITS
        self.expect(self._loss, NO_LIMITS)
        if stage:
            self._replace_checks(optimizer, stage)

    def expect(self, loss: torch.Tensor, limits: Limits) -> None:
        """Begin to judge a step of this mean loss; it counts as skipped until its norm is judged."""
        self._loss, self._limits = loss, limits
        self.norm = torch.full((), math.inf, device=loss.device)
        """Global gradient norm before clipping, on the device; infinite if it is not finite."""
        self.skip: torch.Tensor = torch.ones((), dtype=torch.bool, device=loss.device)

    def judge(self, norm: torch.Tensor) -> bool:
        """Decide by the global gradient norm; return whether the host must skip the step."""
        finite = torch.isfinite(norm)
        self.norm = norm.masked_fill(~finite, math.inf)
        above = (norm > self._limits.grad_norm) | (self._loss.to(norm.device) > self._limits.loss)
        self.skip = ~finite | above
        if not self.on_device:
            return bool(self.skip)
        self._adam.found_inf = self.skip.float()  # type: ignore[attr-defined]
        return False

    def _replace_checks(self, zero: Any, stage: int) -> None:
        """Let ZeRO take this verdict in place of its own checks, each of which waits for the device."""
        offloaded = zero.offload_optimizer if stage == 3 else zero.cpu_offload
        if not self._fp16:
            zero.check_overflow = lambda partition_gradients=True: None  # the norm shows it as well
            if not offloaded:
                direct = _norm_of_shards if stage == 3 else _norm_of_partitions
                zero.get_grad_norm_direct = lambda *args, **_: direct(zero, *args)
        if stage == 3:
            self._replace_in_stage_3(zero)
        else:
            self._replace_in_stages_1_and_2(zero)

    def _answer(self, scaled: Any, scale: float) -> Any:
        """Judge a norm in units of the loss scale; return what makes ZeRO skip the step or go on."""
        norm = torch.as_tensor(scaled)
        if self.judge(norm / scale if self._fp16 else norm):
            return math.inf
        return scaled if self._fp16 else 1.0

    def _replace_in_stages_1_and_2(self, zero: Any) -> None:
        scaled_norm = zero.scaled_global_norm
        zero.scaled_global_norm = lambda norm_type=2: self._answer(scaled_norm(), zero.loss_scale)

        def clip(gradients: Sequence[torch.Tensor], _: Any) -> None:
            """Do as `unscale_and_clip_grads`, which reads the norm once more; the loss scale is 1."""
            if zero.clip_grad > 0:
                factor = 1.0 / torch.clamp((self.norm + 1e-6) / zero.clip_grad, min=1.0)
                for gradient in gradients:
                    gradient.data.mul_(factor)

        if not self._fp16:
            zero.unscale_and_clip_grads = clip

    def _replace_in_stage_3(self, zero: Any) -> None:
        norm_groups, clip = zero._get_norm_groups, zero.unscale_and_clip_grads
        # It combines what this returns, in the host's memory.
        zero._get_norm_groups = lambda: [
            self._answer(combine_grad_norm_groups(norm_groups()), zero.loss_scale)
        ]
        if not self._fp16:
            zero.unscale_and_clip_grads = lambda group, _: clip(group, self.norm)


def _norm_of_partitions(zero: Any, gradients: Any, parameters: Any, norm_type: float = 2) -> torch.Tensor:
    """Sum as ZeRO-1 and 2 do; a norm that is not finite stays so."""
    own = (gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False))
    norms = [
        torch.linalg.vector_norm(gradient.data.to(get_norm_dtype()).detach(), ord=2.0)
        for gradient, _ in zip(own, parameters, strict=False)
    ]
    total = torch.stack(norms).pow(2.0).sum().float() if norms else torch.zeros((), device=zero.device)
    dist.all_reduce(total, group=zero.dp_process_group)
    return total.pow(0.5)


def _norm_of_shards(zero: Any, gradients: Any, parameters: Any, norm_type: float = 2) -> torch.Tensor:
    """Sum as ZeRO-3 does; a norm that is not finite stays so."""
    norms = [gradient.to(get_norm_dtype()).norm(2.0) for gradient in gradients]
    total = torch.sum(torch.pow(torch.stack(norms), 2.0))
    dist.all_reduce(total, group=zero._get_param_partition_group(parameters[0]))
    return total**0.5
