"""Check that this machine has what a DeepSpeed configuration needs, before the ranks are joined."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder

from tokenization.errors import UserError, UserErrors
from trainer.engine.ds_config import OFFLOADED, nvme_path, offloads_optimizer, swap_folders


def check_machine(preset: dict[str, Any], dtype: str, compiled: bool = False) -> None:
    """Check that this machine has all that a preset, a number format and `model.compile` need.

    Raises:
        UserErrors: everything that is missing.
    """
    device = get_accelerator().device_name()
    problems = []
    if dtype == "fp16" and not get_accelerator().is_fp16_supported():
        what, fix = f"is not supported by DeepSpeed on {device}", "use bf16 or fp32"
        problems.append(UserError(what, field="model.dtype", value=dtype, fix=fix))
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if preset["zero_optimization"].get(name) and device == "cpu":
            what, fix = "needs a GPU", "use ds_configs/zero3.json on this machine"
            problems.append(UserError(what, field=f"zero_optimization.{name}", fix=fix))
    if offloads_optimizer(preset) and (missing := _missing_for_cpu_adam()):
        what = f"needs DeepSpeedCPUAdam, which is compiled at first use, and {missing} is not installed"
        fix = "put g++ and ninja on the PATH, or use a preset without offload"
        problems.append(UserError(what, field="zero_optimization.offload_optimizer", fix=fix))
    if compiled and (missing := _missing_for_compiled_layers(device)):
        what = f"needs {missing}, which is not installed on this machine"
        problems.append(
            UserError(what, field="model.compile", value=True, fix="install it, or remove compile")
        )
    problems += _missing_for_nvme(preset)
    if problems:
        raise UserErrors(problems)


def _missing_for_nvme(preset: dict[str, Any]) -> list[UserError]:
    """Find what is missing to swap tensors to NVMe."""
    problems = []
    for what in OFFLOADED:
        path = nvme_path(preset, what)
        if path is not None and not os.access(path, os.W_OK | os.X_OK):
            field, fix = f"zero_optimization.{what}.nvme_path", "give a directory on each node's own disk"
            problems.append(UserError("cannot be written to", field=field, value=str(path), fix=fix))
    if swap_folders(preset) and not AsyncIOBuilder().is_compatible(verbose=False):
        fix = "install it (libaio-dev on Debian and Ubuntu, libaio-devel on others)"
        problems.append(UserError("swapping to NVMe needs libaio, which is not installed", fix=fix))
    return problems


def _missing_for_compiled_layers(device: str) -> str | None:
    """Return what torch.compile lacks to generate code for the device; None if it has all."""
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    compilers = (os.environ.get("CXX", "g++").split()[0],) if device == "cpu" else ("cc", "gcc", "clang")
    return None if any(map(shutil.which, compilers)) else f"a compiler ({' or '.join(compilers)})"


def _missing_for_cpu_adam() -> str | None:
    """Return the tool that is missing to compile it; None if all are there or it was installed compiled."""
    if importlib.util.find_spec("deepspeed.ops.adam.cpu_adam_op") is not None:
        return None
    tools = (os.environ.get("CXX", "c++").split()[0], "ninja")
    return next((tool for tool in tools if shutil.which(tool) is None), None)
