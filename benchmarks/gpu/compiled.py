"""Compiled: what DeepSpeed builds at first use, tried last since a build takes a minute.

DeepSpeedCPUAdam steps states that are offloaded to host memory; FusedAdam is DeepSpeed's own AdamW kernel.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

from benchmarks.gpu.right import LR, STEPS, TOLERANCE, compare, our_loop, plain_loop, small
from benchmarks.gpu.rows import Options, options, row, trial
from trainer import distributed
from trainer.launcher import World

BUILD_S = 75
"""A build may take so long; one that would be cut off is not begun."""


def lacking(*tools: str) -> str:
    """The compilers that are not on the PATH."""
    return ", ".join(tool for tool in tools if shutil.which(tool) is None)


def built(operator: str) -> bool:
    """Whether an earlier process has compiled it."""
    extensions = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    return any(extensions.glob(f"**/{operator}/{operator}.so"))


def offload(cpu: bool, device: torch.device, until: float) -> None:
    """Train with offloaded optimizer states, at ZeRO-2 and 3, against the plain loop."""
    if missing := lacking("c++", "ninja"):
        row("CPU offload", note=f"DeepSpeedCPUAdam is not tried: {missing} is missing here")
        return
    if cpu and not built("cpu_adam"):
        row("CPU offload", note="a dry run does not wait for a build of DeepSpeedCPUAdam")
        return
    if not built("cpu_adam") and until - time.monotonic() < BUILD_S:
        row("CPU offload", note="DeepSpeedCPUAdam is not tried: no time left to build it")
        return
    begin = time.monotonic()
    with trial("DeepSpeedCPUAdam is built"):
        DeepSpeedCPUAdam([torch.zeros(8, requires_grad=True)])
        row("DeepSpeedCPUAdam is built", ok=True, value=time.monotonic() - begin, unit="s")
        plain = plain_loop(small(cpu), device)
        for stage in (2, 3):
            name = f"fp32, ZeRO-{stage} with CPU offload against a plain loop"
            with trial(name):
                zero = {"stage": stage, "offload_optimizer": {"device": "cpu", "pin_memory": not cpu}}
                compare(name, our_loop(small(cpu), zero), plain)


def fused(cpu: bool, device: torch.device, until: float) -> None:
    """Step the same weights with FusedAdam and with PyTorch's own fused AdamW."""
    name = "FusedAdam against torch.optim.AdamW"
    if cpu or (missing := lacking("nvcc", "c++", "ninja")):
        row(name, note="not tried: there is no card" if cpu else f"not tried: {missing} is missing here")
        return
    begin = time.monotonic()
    if not built("fused_adam") and until - begin < BUILD_S:
        row(name, note="not tried: no time left to build it")
        return
    with trial(name):
        torch.manual_seed(0)
        first = torch.randn(1000, 512, device=device)
        ours, theirs = (first.clone().requires_grad_() for _ in range(2))
        settings = {"lr": LR, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        pair = (
            FusedAdam([ours], adam_w_mode=True, **settings),
            torch.optim.AdamW([theirs], fused=True, **settings),
        )
        took = time.monotonic() - begin
        for step in range(STEPS):
            gradient = torch.randn(first.shape, generator=torch.Generator().manual_seed(step)).to(device)
            for weights, adam in zip((ours, theirs), pair, strict=True):
                weights.grad = gradient.clone()
                adam.step()
        apart = float((ours - theirs).abs().max())
        row(name, ok=apart < TOLERANCE, value=apart, note=f"{STEPS} steps; built and loaded in {took:.0f} s")


def main(asked: Options) -> None:
    """Write the rows."""
    until = time.monotonic() + 60 * asked.minutes
    torch.set_float32_matmul_precision("highest")
    distributed.start(World())
    device = distributed.device()
    offload(asked.cpu, device, until)
    fused(asked.cpu, device, until)
    distributed.stop()


if __name__ == "__main__":
    main(options())
