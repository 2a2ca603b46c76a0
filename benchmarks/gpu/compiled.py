"""Compiled: what DeepSpeed builds at first use, tried last since a build takes a minute.

DeepSpeedCPUAdam steps states that are offloaded to host memory; FusedAdam is DeepSpeed's own AdamW kernel.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Options, options, row, trial

BUILD_S = 75
"""A build may take so long; one that would be cut off is not begun."""


def lacking(*tools: str) -> str:
    """Return the compilers that are not on the PATH."""
    return ", ".join(tool for tool in tools if shutil.which(tool) is None)


def built(operator: str) -> bool:
    """Return whether an earlier process has compiled it."""
    extensions = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    return any(extensions.glob(f"**/{operator}/{operator}.so"))


def offload(cpu: bool, until: float) -> None:
    """Train with offloaded optimizer states, at ZeRO-2 and 3, against the plain loop."""
    why = None
    if missing := lacking("c++", "ninja"):
        why = f"{missing} is missing here"
    elif not built("cpu_adam") and (cpu or until - time.monotonic() < BUILD_S):
        why = "a dry run does not wait for a build" if cpu else "no time left to build it"
    if why:
        row("CPU offload", note=f"DeepSpeedCPUAdam is not tried: {why}")
        return
    begin = time.monotonic()
    with trial("DeepSpeedCPUAdam is built"):
        import torch
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        from benchmarks.gpu.right import alone, compare, our_loop, plain_loop, small

        DeepSpeedCPUAdam([torch.zeros(8, requires_grad=True)])
        row("DeepSpeedCPUAdam is built", ok=True, value=time.monotonic() - begin, unit="s")
        with alone() as device:
            plain = plain_loop(small(cpu), device)
            for stage in (2, 3):
                name = f"fp32, ZeRO-{stage} with CPU offload against a plain loop"
                with trial(name):
                    zero = {"stage": stage, "offload_optimizer": {"device": "cpu", "pin_memory": not cpu}}
                    compare(name, our_loop(small(cpu), zero), plain)


def fused(cpu: bool, until: float) -> None:
    """Step the same weights with FusedAdam and with PyTorch's own fused AdamW."""
    name, why = "FusedAdam against torch.optim.AdamW", None
    begin = time.monotonic()
    if cpu:
        why = "there is no card"
    elif missing := lacking("nvcc", "c++", "ninja"):
        why = f"{missing} is missing here"
    elif not built("fused_adam") and until - begin < BUILD_S:
        why = "no time left to build it"
    if why:
        row(name, note=f"not tried: {why}")
        return
    with trial(name):
        import torch
        from deepspeed.ops.adam import FusedAdam

        from benchmarks.gpu.right import LR, STEPS, TOLERANCE

        torch.manual_seed(0)
        first = torch.randn(1000, 512, device="cuda")
        ours, theirs = (first.clone().requires_grad_() for _ in range(2))
        settings: dict[str, Any] = {"lr": LR, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        pair = (
            FusedAdam([ours], adam_w_mode=True, **settings),
            torch.optim.AdamW([theirs], fused=True, **settings),
        )
        took = time.monotonic() - begin
        for _ in range(STEPS):
            gradient = torch.randn_like(first)
            for weights, adam in zip((ours, theirs), pair, strict=True):
                weights.grad = gradient.clone()
                adam.step()
        apart = float((ours.detach() - theirs.detach()).abs().max())
        row(name, ok=apart < TOLERANCE, value=apart, note=f"{STEPS} steps; built and loaded in {took:.0f} s")


def main(args: Options) -> None:
    """Write the rows."""
    until = time.monotonic() + 60 * args.minutes
    offload(args.cpu, until)
    fused(args.cpu, until)


if __name__ == "__main__":
    main(options())
