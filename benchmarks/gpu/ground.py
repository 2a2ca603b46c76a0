"""Ground: the card, what is installed, and what the card can do at best."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from benchmarks.gpu.rows import Options, options, row, trial

PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "triton", "flash-attn", "numpy", "gigatoken")
TOOLS = ("nvcc", "c++", "ninja")
REPEATS = 20


def card(cpu: bool) -> None:
    """Name the card and its memory."""
    if cpu:
        row("card", value="no card", note="a dry run on toy sizes")
        return
    if not torch.cuda.is_available():
        cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        row("card", ok=False, note=f"torch {torch.__version__}, built {cuda}, finds no card")
        return
    about = torch.cuda.get_device_properties(0)
    built = f"{about.multi_processor_count} multiprocessors, sm_{about.major}{about.minor}"
    note = f"{about.total_memory / 2**30:.1f} GiB, {built}"
    row("card", ok=True, value=about.name, note=note)
    row(
        "driver",
        value=driver(),
        note=f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}",
    )
    row("bf16 is supported", ok=torch.cuda.is_bf16_supported(including_emulation=False))


def driver() -> str:
    """Return the version of NVIDIA's driver."""
    args = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(args, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def host() -> None:
    """Name what is installed, and the host."""
    row("versions", value=", ".join(f"{name} {found}" for name in PACKAGES if (found := installed(name))))
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    note = (
        f"lacks {', '.join(lacking)}: what DeepSpeed compiles is not tried" if lacking else ", ".join(TOOLS)
    )
    row("compilers", value=f"{len(TOOLS) - len(lacking)} of {len(TOOLS)}", note=note)
    memory = psutil.virtual_memory().total / 2**30
    row(
        "host",
        value=f"{os.cpu_count()} cores",
        note=f"{memory:.0f} GiB of memory, Linux {platform.release()}",
    )


def installed(name: str) -> str | None:
    """Return a distribution's version; None if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def seconds(work: Callable[[], object], cpu: bool, repeats: int = REPEATS) -> float:
    """Return the median time of `work`, after three runs to warm up."""
    for _ in range(3):
        work()
    if cpu:
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for begin_event, end_event in events:
        begin_event.record()
        work()
        end_event.record()
    torch.cuda.synchronize()
    return statistics.median(one.elapsed_time(other) for one, other in events) / 1000


def matmul(where: torch.device, size: int) -> None:
    """Measure the bf16 matrix product, which is the ceiling of every model's FLOP/s."""
    left, right = (torch.randn(size, size, device=where, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    took = seconds(lambda: torch.mm(left, right, out=out), where.type == "cpu")
    note = f"{size}³, random data, median of {REPEATS}"
    row("bf16 matmul", value=2 * size**3 / took / 1e12, unit="TFLOP/s", note=note)


def copies(where: torch.device, megabytes: int) -> None:
    """Measure copies between host and device, and within the device."""
    count = megabytes * 2**20
    there = torch.empty(count, dtype=torch.uint8, device=where)
    also = torch.empty_like(there)
    pageable = torch.empty(count, dtype=torch.uint8).fill_(1)
    cpu = where.type == "cpu"
    pinned = pageable if cpu else pageable.pin_memory()
    note = f"{megabytes} MiB, median of {REPEATS}" + (" (no card: plain copies)" if cpu else "")

    def rate(name: str, work: Callable[[], object], times: int = 1) -> None:
        row(name, value=times * count / seconds(work, cpu) / 1e9, unit="GB/s", note=note)

    rate("host to device, pinned", lambda: there.copy_(pinned, non_blocking=True))
    rate("host to device, not pinned", lambda: there.copy_(pageable))
    rate("device to host, pinned", lambda: pinned.copy_(there, non_blocking=True))
    rate("device to device, read and written", lambda: also.copy_(there), times=2)


def main(args: Options) -> None:
    """Write the rows."""
    card(args.cpu)
    host()
    where = torch.device("cpu" if args.cpu else "cuda")
    with trial("bf16 matmul"):
        matmul(where, 256 if args.cpu else 8192)
    with trial("copies"):
        copies(where, 4 if args.cpu else 512)


if __name__ == "__main__":
    main(options())
