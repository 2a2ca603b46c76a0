"""What this machine lacks for a DeepSpeed configuration, found before ranks are joined."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder

from tokenization.errors import UserError, UserErrors
from trainer.engine.ds_config import OFFLOADED, nvme_path, offloads_optimizer, swap_folders


def check_machine(preset: dict[str, Any], dtype: str) -> None:
    """What this machine lacks for a preset and a number format; to be asked before the ranks are joined.

    Raises:
        Problems: all of it.
    """
    device = get_accelerator().device_name()
    problems = []
    if dtype == "fp16" and not get_accelerator().is_fp16_supported():
        what, fix = f"is not what DeepSpeed computes with on this {device}", "take bf16 or fp32"
        problems.append(UserError(what, field="model.dtype", value=dtype, fix=fix))
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if preset["zero_optimization"].get(name) and device == "cpu":
            what, fix = "needs a GPU", "take ds_configs/zero3.json on this machine"
            problems.append(UserError(what, field=f"zero_optimization.{name}", fix=fix))
    if offloads_optimizer(preset) and (lacking := _lacks_for_cpu_adam()):
        what = f"needs DeepSpeedCPUAdam, which is compiled at first use, and {lacking} is missing here"
        fix = "have g++ and ninja on the PATH, or take a preset without offload"
        problems.append(UserError(what, field="zero_optimization.offload_optimizer", fix=fix))
    problems += _lacks_for_nvme(preset)
    if problems:
        raise UserErrors(problems)


def _lacks_for_nvme(preset: dict[str, Any]) -> list[UserError]:
    """What is missing to swap tensors out to files."""
    problems = []
    for what in OFFLOADED:
        path = nvme_path(preset, what)
        if path is not None and not os.access(path, os.W_OK | os.X_OK):
            field, fix = f"zero_optimization.{what}.nvme_path", "name a directory on each node's own disk"
            problems.append(UserError("cannot be written to", field=field, value=str(path), fix=fix))
    if swap_folders(preset) and not AsyncIOBuilder().is_compatible(verbose=False):
        fix = "install it (libaio-dev on Debian and Ubuntu, libaio-devel on others)"
        problems.append(UserError("swapping to NVMe needs libaio, which is missing here", fix=fix))
    return problems


def _lacks_for_cpu_adam() -> str | None:
    """The tool that is missing to compile it; None too where DeepSpeed was installed with it."""
    if importlib.util.find_spec("deepspeed.ops.adam.cpu_adam_op") is not None:
        return None
    tools = (os.environ.get("CXX", "c++").split()[0], "ninja")
    return next((tool for tool in tools if shutil.which(tool) is None), None)
