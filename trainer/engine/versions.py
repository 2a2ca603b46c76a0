"""Versions of DeepSpeed that train on wrong gradients, and for which configurations."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

from tokenization.errors import UserError
from trainer.engine.ds_config import offloads_optimizer, stage


@dataclass(frozen=True)
class Defect:
    """A defect of the versions from `since` to before `fixed` that changes gradients without a word."""

    since: str
    fixed: str
    what: str
    stages: tuple[int, ...]
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    accumulating: bool = False
    """Whether it needs more than one micro batch in a step."""
    offloading: bool = False
    """Whether it needs an optimizer in host memory."""


DEFECTS = (
    Defect(
        "0.18.6", "0.18.11", "bf16 at ZeRO stage 1 leaves the last micro batch out of the reduction",
        stages=(1,), dtypes=("bf16",), accumulating=True,
    ),
    Defect(
        "0", "0.19.0", "CPU offload at ZeRO stages 1 and 2 keeps the gradient of the last micro batch alone",
        stages=(1, 2), accumulating=True, offloading=True,
    ),
    Defect("0", "0.18.6", "bf16 at ZeRO stage 0 divides gradients by 65,536", stages=(0,), dtypes=("bf16",)),
)  # fmt: skip
"""Fixed by DeepSpeed's pull requests 7985, 7967 and 7981, and 7839."""


def check_version(
    preset: dict[str, Any], dtype: str, accumulation_steps: int, installed: str | None = None
) -> None:
    """Refuse a version of DeepSpeed that would train this configuration on wrong gradients.

    `installed` is the version; by default that of this environment.

    Raises:
        UserError: it names the versions, the defect and the fix.
    """
    found = installed or _installed()
    if found is None:
        return
    release = Version(Version(found).base_version)
    for defect in DEFECTS:
        applies = (
            Version(defect.since) <= release < Version(defect.fixed)
            and stage(preset) in defect.stages
            and dtype in defect.dtypes
            and (accumulation_steps > 1 or not defect.accumulating)
            and (offloads_optimizer(preset) or not defect.offloading)
        )
        if applies:
            raise UserError(
                f"DeepSpeed {found} trains on wrong gradients here: {defect.what}",
                fix=f"install deepspeed {defect.fixed} or later (`pip install -U deepspeed`)",
            )


def _installed() -> str | None:
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None
