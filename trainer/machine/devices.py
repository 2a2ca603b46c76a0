"""The devices of this machine: their number, their memory, their peak FLOP/s."""

from __future__ import annotations

import os
import re

import psutil

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
    import torch

    if torch.cuda.is_available():
        return int(0.9 * torch.cuda.get_device_properties(0).total_memory)
    return int(0.5 * psutil.virtual_memory().total / world_size)
