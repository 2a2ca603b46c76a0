"""The devices of this machine: their number, their memory, their peak FLOP/s."""

from __future__ import annotations

import os
import re
import sys

import psutil

from tokenization.errors import UserError, did_you_mean

PEAKS = (
    (r"H100 NVL", 835e12),
    (r"H[18]00 PCIe", 756e12),
    (r"GH200|H200|H100|H800", 989e12),
    (r"H20", 148e12),
    (r"A[18]00", 312e12),
    (r"A40", 149.7e12),
    (r"A30", 165e12),
    (r"L40S", 362e12),
    (r"L40", 181e12),
    (r"L4", 121e12),
    (r"RTX 4090$", 165.2e12),
    (r"RTX 3090$", 71e12),
    (r"MI300X|MI325X", 1307.4e12),
)
"""Dense bf16 FLOP/s with fp32 accumulation, from the makers' datasheets, by a pattern of whole words."""


GPUS = {
    "h100": ("H100", 80.0),
    "h100 pcie": ("H100 PCIe", 80.0),
    "h100 nvl": ("H100 NVL", 94.0),
    "h200": ("H200", 140.0),
    "h800": ("H800", 80.0),
    "h20": ("H20", 96.0),
    "gh200": ("GH200", 96.0),
    "a100": ("A100", 80.0),
    "a100 40gb": ("A100", 40.0),
    "a800": ("A800", 80.0),
    "a40": ("A40", 48.0),
    "a30": ("A30", 24.0),
    "l40s": ("L40S", 48.0),
    "l40": ("L40", 48.0),
    "l4": ("L4", 24.0),
    "rtx 4090": ("RTX 4090", 24.0),
    "rtx 3090": ("RTX 3090", 24.0),
    "mi300x": ("MI300X", 192.0),
    "mi325x": ("MI325X", 256.0),
}
"""GPUs that one can plan for: the name that `PEAKS` knows, and the memory in GiB, by a short name."""


def peak_flops(device: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of a device (named by `torch.cuda.get_device_name()`) in `dtype`, or None.

    bf16 and fp16 are equally fast on all of them. The result is None for an unknown device, and for
    fp32, whose speed depends on settings.
    """
    if dtype == "fp32":
        return None
    words = device.replace("-", " ")
    return next((limit for name, limit in PEAKS if re.search(rf"\b(?:{name})(?!\S)", words)), None)


def prefer_expandable_segments() -> None:
    """Let PyTorch's allocator grow its blocks on a GPU, against fragments; before torch is imported."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def count_devices() -> int:
    """Return how many ranks fit on this machine: one per GPU, else one."""
    import torch

    return torch.cuda.device_count() or 1


def available_bytes(world_size: int) -> int:
    """Return the memory that a rank may use: nine tenths of its GPU, or a share of half of the host's."""
    if has_cuda():
        import torch

        return usable_bytes(torch.cuda.get_device_properties(0).total_memory)
    return int(0.5 * psutil.virtual_memory().total / world_size)


def has_cuda() -> bool:
    """Tell whether there is a GPU; torch, whose import takes seconds, is asked only if there is a driver."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    if sys.platform == "linux" and not any(os.path.exists(driver) for driver in drivers):
        return False
    import torch

    return bool(torch.cuda.is_available())


def usable_bytes(total: float) -> int:
    """Return what a rank may use of a GPU's memory: CUDA's own context and fragments take the rest."""
    return int(0.9 * total)


def known_gpu(name: str) -> tuple[str, float]:
    """Return a GPU's name as the driver writes it and its memory in GiB, from a short name such as `h100`.

    Raises:
        UserError: it is not known.
    """
    word = " ".join(name.lower().replace("-", " ").split())
    if word in GPUS:
        return GPUS[word]
    fix = did_you_mean(word, GPUS) or f"known are {', '.join(GPUS)}"
    raise UserError("is not a GPU whose peak FLOP/s are known", field="--gpu", value=name, fix=fix)
