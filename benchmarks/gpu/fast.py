"""Step 4 of benchmarks/gpu.sh: how fast the trainer's engine is, compared with a bare PyTorch loop.

    python -m benchmarks.gpu.fast --out DIR [--cpu] [--minutes M]

1B random weights at 4,096 tokens in bf16, each loop with the card to itself: ours and the bare one, layers
compiled, the largest LLaMA that fits (moments in bf16), transformers' `Trainer` in a process of its own,
Liger's loss, documents, products in 8 bits, a larger vocabulary, recomputation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.rows import options, row

if TYPE_CHECKING:
    from benchmarks.gpu.engines import Setting, Timed


def main() -> int:
    """Always 0: what fails is a row."""
    args = options()
    if args.cpu:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    row("started", note="toy sizes on the CPU" if args.cpu else "")
    with tempfile.TemporaryDirectory(prefix="rewarm-fast-") as folder:
        measure(Path(folder), args.cpu, time.monotonic() + 60 * args.minutes)
    return 0


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    folder: Path
    store: Any
    steps: int
    """Of ours, in each of its two turns."""
    bare_steps: int
    until: float
    """On the monotonic clock: what would go beyond is not begun."""

    def left(self) -> float:
        """Seconds that remain."""
        return self.until - time.monotonic()


def measure(folder: Path, cpu: bool, until: float) -> None:
    """All rows, in order of worth."""
    from benchmarks.gpu import engines
    from trainer.machine import collectives
    from trainer.machine.ranks import World

    collectives.join_ranks(World())
    shape = engines.TOY if cpu else engines.ONE_B
    small, large = (512, 640) if cpu else (32_000, 55_296)
    store = engines.make_noise(folder, small, 100_000 if cpu else 4_000_000)
    bench = Bench(folder, store, 2 if cpu else 10, 1 if cpu else 6, until)
    first = engines.Setting(shape, small)
    if cpu:
        first = replace(first, seq_len=64, micro_batch_size=2)
    took(bench, "32k", first, turns=1)
    quick = replace(first, compiled=True)
    took(bench, "32k, compiled", quick, alone=True)
    if cpu:  # a toy's layers take longer to compile than to train
        quick = first
    double = replace(quick, micro_batch_size=2 * quick.micro_batch_size, accumulation=1)
    took(bench, "32k, compiled, twice the micro batch", double, alone=True)
    largest(bench, first, cpu)
    beside_trainer(bench, first, cpu)
    if importlib.util.find_spec("liger_kernel") is None:
        row(f"{shape.name} 32k, Liger's loss", note="not tried: liger-kernel is not installed")
    else:
        took(bench, "32k, compiled, Liger's loss", replace(quick, loss="liger"), alone=True)
    packed = replace(quick, document_mask="causal_per_document")
    took(bench, "32k, compiled, documents", packed, alone=True)
    took(bench, "32k, compiled, documents by a mask", replace(packed, attention="sdpa"), alone=True)
    if cpu:
        row(f"{shape.name} 32k, 8-bit products", note="not tried: no card")
    else:
        took(bench, "32k, compiled, 8-bit products", replace(quick, float8=True), alone=True)
    took(bench, "55k", replace(first, vocab_size=large))
    took(bench, "55k, compiled", replace(quick, vocab_size=large), alone=True)
    took(bench, "32k, compiled, recomputed", replace(quick, recompute="full"), alone=True)
    building(bench, first)
    collectives.leave_ranks()


NEEDS_S = 20
"""Of a loop: to begin, to compile, to warm up and to train its steps."""


def took(bench: Bench, name: str, setting: Setting, turns: int = 1, alone: bool = False) -> None:
    """Ours and the bare loop by turns, or ours alone; each row as it is known."""
    from benchmarks.gpu import engines

    name = f"{setting.shape.name} {name}"
    rates: dict[str, list[float]] = {}
    settings = {"ours": setting, "bare": setting}
    loops: list[tuple[str, Any, int]] = [("ours", engines.Ours, bench.steps)]
    loops += [("bare", engines.Bare, bench.bare_steps)] * (not alone)
    for turn in range(turns):
        for kind, make, steps in loops:
            if bench.left() < NEEDS_S:
                row(f"{name}: {kind}, turn {turn + 1}", note="not tried: no time left")
                continue
            label = f"{name}: {kind}"
            done = fitting(label, settings[kind], partial(timed, bench, make, steps))
            if done is None:
                continue
            used, found, peak, ready_s, left_gib = done
            settings[kind] = used
            rates.setdefault(kind, []).append(found.tokens / found.seconds)
            tell(label, turn + 1, used, found, peak, ready_s)
            if left_gib > 0.5:
                row(
                    f"{label}, memory left after close",
                    False,
                    round(left_gib, 2),
                    "GiB",
                    "given back too late",
                )
    if len(rates) == 2:
        ours, bare = (sum(rates[kind]) / len(rates[kind]) for kind in ("ours", "bare"))
        row(f"{name}: ours / bare", value=round(ours / bare, 3), unit="x", note="mean tokens/s of all turns")


def fitting(label: str, setting: Setting, attempt: Callable[[Setting], Any]) -> Any:
    """What `attempt` answers for the largest micro batch that fits, from the setting's down; or None."""
    while True:
        memory_full, problem = tried(attempt, setting)
        if problem is None:
            return setting, *memory_full
        smaller = memory_full and setting.micro_batch_size > 1
        row(label, ok=None if smaller else False, note=f"micro batch {setting.micro_batch_size}: {problem}")
        if not smaller:
            return None
        half = setting.micro_batch_size // 2
        setting = replace(setting, micro_batch_size=half, accumulation=setting.accumulation * 2)


def tried(attempt: Callable[[Setting], Any], setting: Setting) -> tuple[Any, str | None]:
    """(answer, None), or (whether memory was the reason, what went wrong), with the memory given back."""
    from benchmarks.gpu import engines

    try:
        return attempt(setting), None
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        full = "out of memory" in str(error).lower()
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:250]}"
    engines.forget()  # the error's frames, which held the tensors, are gone by now
    return full, problem


def timed(bench: Bench, make: Any, steps: int, setting: Setting) -> tuple[Timed, float | None, float, float]:
    """Times `steps` after two to warm up: (their time, peak GiB, seconds until ready, GiB not given back)."""
    from benchmarks.gpu import engines

    engines.forget()
    before = engines.held_gib()
    began = time.perf_counter()
    loop = make(setting, bench.folder, bench.store)
    engines.synchronize()
    ready_s = time.perf_counter() - began
    try:
        loop.steps(2)
        found = loop.steps(steps)
        peak = engines.peak_gib()
    finally:
        loop.close()
    del loop
    engines.forget()
    return found, peak, ready_s, engines.held_gib() - before


def tell(label: str, turn: int, setting: Setting, found: Timed, peak: float | None, ready_s: float) -> None:
    """The rows of one measurement."""
    from benchmarks.gpu import engines
    from trainer.machine.devices import peak_flops
    from trainer.model.size import flops_per_token, matmul_parameters

    rate = found.tokens / found.seconds
    steps = found.tokens // setting.tokens_per_step
    how = (
        f"turn {turn}; {steps} steps of {setting.tokens_per_step:,} tokens, "
        f"micro batch {setting.micro_batch_size} x {setting.accumulation}; "
        f"{1e3 * found.seconds / steps:.0f} ms a step; ready after {ready_s:.1f} s; loss {found.loss:.2f}"
    )
    row(f"{label}, tokens/s", value=round(rate, 1), unit="tokens/s", note=how)
    config = setting.shape.config(setting.vocab_size)
    if ceiling := peak_flops(engines.card(), setting.dtype):
        by_6n = 6 * matmul_parameters(config) * rate / ceiling
        whole = flops_per_token(config, setting.seq_len) * rate / ceiling
        row(
            f"{label}, MFU 6N", value=round(100 * by_6n, 1), unit="%", note=f"of {ceiling / 1e12:.0f} TFLOP/s"
        )
        row(f"{label}, MFU 6N+12Lds", value=round(100 * whole, 1), unit="%")
    if peak is not None:
        row(f"{label}, peak memory", value=round(peak, 2), unit="GiB")
    row(f"{label}, data wait", value=round(1e3 * found.wait_s / steps, 2), unit="ms/step")


def beside_trainer(bench: Bench, setting: Setting, cpu: bool) -> None:
    """transformers' `Trainer` with the same DeepSpeed configuration, by `benchmarks.peer`."""
    name = f"{setting.shape.name} 32k: Trainer"
    if bench.left() < (180 if cpu else 60):
        row(name, note="not tried: no time left")
        return
    file = bench.folder / "setting.json"
    file.write_text(json.dumps(asdict(setting)), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.peer", file, bench.folder / "peer", "--steps", bench.steps]
    told = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "MASTER_PORT": port},
        capture_output=True,
        text=True,
        timeout=max(30.0, bench.left()),
        check=False,
    )
    if told.returncode:
        row(name, ok=False, note=" ".join(told.stderr.split())[-250:])
        return
    found = json.loads(told.stdout.splitlines()[-1])
    rate = bench.steps * setting.tokens_per_step / found["seconds"]
    row(f"{name}, tokens/s", value=round(rate, 1), unit="tokens/s", note=f"loss {found['loss']:.2f}")
    if found["peak_gib"] is not None:
        row(f"{name}, peak memory", value=round(found["peak_gib"], 2), unit="GiB")


def largest(bench: Bench, like: Setting, cpu: bool) -> None:
    """The largest shape whose states leave room, with as little computed again as fits.

    The moments are in bf16 for it, and the layers compiled, as those who publish such numbers have it.
    """
    import torch

    from benchmarks.gpu import engines
    from trainer.model.size import parameters
    from trainer.plan.memory import MemorySettings, Shape, estimate

    room = None if cpu else torch.cuda.get_device_properties(0).total_memory
    for shape in (engines.SMALLER_TOY,) if cpu else (engines.EIGHT_B, engines.SEVEN_B, engines.THREE_B):
        config = shape.config(like.vocab_size)
        name, billions = f"largest: {shape.name}", parameters(config) / 1e9
        for recompute in ("none", "full"):
            setting = replace(
                like,
                shape=shape,
                micro_batch_size=1,
                accumulation=8,
                recompute=recompute,
                compiled=not cpu,
                state_dtype="bf16",
            )
            settings = MemorySettings(
                stage=2,
                world_size=1,
                seq_len=setting.seq_len,
                dtype=setting.dtype,
                recompute=recompute,
                state_width=2,
            )
            needs = estimate(Shape.of(config), settings).peak(1)
            expected = (
                f"{billions:.2f}e9 parameters, recomputed: {recompute}, {needs / 2**30:.1f} GiB expected"
            )
            if room is not None and needs > 1.02 * room:
                row(name, note=f"not tried: {expected}, more than the card has")
                continue
            if bench.left() < 45:
                row(name, note="not tried: no time left")
                continue
            steps = max(2, bench.steps // 3)
            done = fitting(name, setting, partial(timed, bench, engines.Ours, steps))
            if done is not None:
                used, found, peak, ready_s, _ = done
                row(name, ok=True, value=round(billions, 2), unit="1e9 parameters", note=expected)
                tell(name, 1, used, found, peak, ready_s)
                return


def building(bench: Bench, setting: Setting) -> None:
    """Seconds in which the trainer draws random weights, on the CPU as it does."""
    from benchmarks.gpu.models import build

    if bench.left() < 30:
        row(f"{setting.shape.name}: drawing weights", note="not tried: no time left")
        return
    began = time.perf_counter()
    build(setting.recipe(bench.folder), setting.vocab_size)
    row(
        f"{setting.shape.name}: drawing weights",
        value=round(time.perf_counter() - began, 2),
        unit="s",
        note="by trainer.model.build on the CPU; the measurements above draw theirs on the card",
    )


if __name__ == "__main__":
    sys.exit(main())
