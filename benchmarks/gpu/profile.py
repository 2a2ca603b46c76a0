"""Step 5 of benchmarks/gpu.sh: where the time of a training step goes.

    python -m benchmarks.gpu.profile --out DIR [--cpu] [--minutes M]

torch's profiler over three steps of the 1B model, its layers compiled: the dearest operations, and where the
host waits for the card. The whole table is in DIR/profile.log.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.rows import options, row, trial

if TYPE_CHECKING:
    from benchmarks.gpu.engines import Ours

STEPS = 3
"""Under the profiler."""

DEAREST = 25
"""Operations that are reported."""

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""Calls in which the host waits for the card, as the profiler names them."""

READS = ("aten::item", "aten::_local_scalar_dense", "Memcpy DtoH")
"""Beginnings of the names of what reads a value of the card."""


def main() -> int:
    """Return 0 always: what fails is a row."""
    args = options()
    if args.cpu:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    row("started", note="toy sizes on the CPU" if args.cpu else "")
    with tempfile.TemporaryDirectory(prefix="rewarm-profile-") as folder, trial("profile"):
        measure(Path(folder), args.cpu)
    return 0


def measure(folder: Path, cpu: bool) -> None:
    """Write all rows."""
    from benchmarks.gpu import engines
    from trainer.machine import collectives
    from trainer.machine.ranks import World

    collectives.join_ranks(World())
    setting = engines.Setting(engines.TOY, 512, seq_len=64, micro_batch_size=2) if cpu else None
    setting = setting or engines.Setting(engines.ONE_B, 32_000, compiled=True)
    store = engines.make_noise(folder, setting.vocab_size, 100_000 if cpu else 2_000_000)
    ours = opened(setting, folder, store)
    plain = ours.steps(STEPS)
    step_ms = 1e3 * plain.seconds / STEPS
    how = f"{setting.shape.name}, micro batch {ours.setting.micro_batch_size} x {ours.setting.accumulation}"
    row("a step without the profiler", value=round(step_ms, 2), unit="ms", note=how)
    with trial("profiled"):
        profiled(ours, step_ms)
    with trial("lines that wait"):
        lines_that_wait(ours)
    ours.close()
    collectives.leave_ranks()


def opened(setting: Any, folder: Path, store: Any) -> Ours:
    """Return the engine, warmed up; with half the micro batch where the whole one does not fit."""
    from benchmarks.gpu import engines

    while True:
        try:
            ours = engines.Ours(setting, folder, store)
            ours.steps(2)
            return ours
        except Exception as error:
            if "out of memory" not in str(error).lower() or setting.micro_batch_size == 1:
                raise
        engines.forget()
        half = setting.micro_batch_size // 2
        setting = replace(setting, micro_batch_size=half, accumulation=2 * setting.accumulation)


@dataclass(frozen=True)
class Operation:
    """What operations of one name took on the device, all together."""

    name: str
    ms: float
    calls: int


def profiled(ours: Ours, step_ms: float) -> None:
    """Write the most expensive operations and kernels, and the waits per step."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.gpu import engines

    card = engines.peak_gib() is not None
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card else [])]
    with profile(activities=activities) as found:
        ours.steps(STEPS)
    began = time.perf_counter()
    averages = found.key_averages()
    by = "self_device_time_total" if card else "self_cpu_time_total"
    print(averages.table(sort_by=by, row_limit=60, max_name_column_width=90), file=sys.stderr)
    events = [event for event in averages if not getattr(event, "is_user_annotation", False)]
    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    hosted = [event for event in events if event.device_type == DeviceType.CPU]
    operations = dearest(hosted, card)
    whole = sum(one.ms for one in operations)
    busy = sum(event.self_device_time_total for event in kernels if _is_work(event.key)) / 1e3 / STEPS
    if card:
        note = f"{busy:.1f} ms of kernels and copies in a step of {step_ms:.1f} ms; streams may overlap"
        row("the card is busy", value=round(100 * busy / step_ms, 1), unit="%", note=note)
    for number, one in enumerate(operations[:DEAREST], start=1):
        share = f"{100 * one.ms / whole:.1f} % of all operations; {one.calls / STEPS:g} calls a step"
        row(f"{number:2d}. {one.name}", value=round(one.ms / STEPS, 3), unit="ms/step", note=share)
    for number, one in enumerate(dearest([k for k in kernels if _is_work(k.key)], card)[:10], start=1):
        share = f"{100 * one.ms / STEPS / step_ms:.1f} % of the step; {one.calls / STEPS:g} calls a step"
        row(
            f"kernel {number:2d}. {one.name[:90]}", value=round(one.ms / STEPS, 3), unit="ms/step", note=share
        )
    waits = {name: _calls(hosted, name) for name in WAITS}
    waits["cudaDeviceSynchronize"] = max(0, waits["cudaDeviceSynchronize"] - 2)  # this measurement's own
    note = ", ".join(f"{name} {count / STEPS:g}" for name, count in waits.items())
    row(
        "the host waits for the card",
        value=round(sum(waits.values()) / STEPS, 2),
        unit="times/step",
        note=note,
    )
    for name in READS:
        row(f"{name}", value=round(_calls(events, name) / STEPS, 2), unit="times/step")
    print(f"the profile was read in {time.perf_counter() - began:.1f} s", file=sys.stderr)


def dearest(events: list[Any], card: bool) -> list[Operation]:
    """Return operations by the time that they themselves took on the device (without a card: on the CPU)."""
    times = [
        Operation(
            event.key,
            (event.self_device_time_total if card else event.self_cpu_time_total) / 1e3,
            event.count,
        )
        for event in events
    ]
    return sorted((one for one in times if one.ms > 0), key=lambda one: -one.ms)


def _is_work(name: str) -> bool:
    """Whether an entry of the card is a kernel or a copy, and not the mirror of a range of the host's."""
    return not name.startswith(("ProfilerStep", "aten::", "nccl:", "gloo:", "Optimizer", "autograd::"))


def _calls(events: list[Any], beginning: str) -> int:
    return sum(event.count for event in events if event.key.startswith(beginning))


def lines_that_wait(ours: Ours) -> None:
    """Rows: the lines of Python that make the host wait, as torch's own watch tells them."""
    import torch

    if not torch.cuda.is_available():
        row("lines that wait", note="not tried: no card")
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours.steps(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{'/'.join(Path(one.filename).parts[-3:])}:{one.lineno}"
        for one in caught
        if "synchroniz" in str(one.message)
    )
    row("lines that wait", value=sum(places.values()), unit="times/step", note="by set_sync_debug_mode")
    for place, count in places.most_common(15):
        row(f"waits: {place}", value=count, unit="times/step")


if __name__ == "__main__":
    sys.exit(main())
