"""Hold what `rewarm plan` estimates against what is traced, measured and published.

    python -m benchmarks.plan traced      # LLaMA-2's shapes at 4,096 tokens, without their memory; a minute
    python -m benchmarks.plan measured    # small real runs on the CPU, every tensor counted; ten minutes
    python -m benchmarks.plan published   # LLaMA-2's GPU hours and ZeRO's memory beside the papers' numbers

Each prints a table for docs/plan.md; `--json FILE` writes its rows, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.ranks import surroundings
from tokenization.tables import text_table
from trainer.engine.ds_config import read_preset
from trainer.machine.ranks import free_port
from trainer.plan.cost import compute_cost
from trainer.plan.memory import MemorySettings, Shape, bare_peak, estimate
from trainer.plan.presets import SHIPPED, memory_settings
from trainer.plan.shapes import SHAPES

GIB = 2**30

MODES = ("none", "every_n: 2", "full")

MEASURED = (
    ("zero0", "fp32", 1, "none"),
    ("zero1", "fp32", 1, "none"),
    ("zero1", "fp32", 2, "none"),
    ("zero2", "fp32", 1, "none"),
    ("zero2", "fp32", 2, "full"),
    ("zero3", "fp32", 1, "none"),
    ("zero3", "fp32", 2, "none"),
    ("zero2", "bf16", 1, "none"),
    ("zero2-offload", "fp32", 2, "none"),
    ("zero3-offload", "fp32", 2, "none"),
)
"""Preset, dtype, ranks, activation checkpointing."""

LLAMA2_HOURS = {"llama2-7b": 184_320, "llama2-13b": 368_640, "llama2-70b": 1_720_320}
"""GPU hours on A100-80GB for 2T tokens: Touvron et al. 2023 (arXiv 2307.09288), table 2."""

ZERO_7_5B = {0: 120.0, 1: 31.4, 2: 16.6, 3: 1.9}
"""GB of states per GPU of 7.5B parameters on 64: Rajbhandari et al. 2020 (arXiv 1910.02054), figure 1."""


@dataclass(frozen=True)
class Row:
    """An estimate beside another number for the same thing."""

    what: str
    estimate: float
    found: float
    note: str = ""

    @property
    def off(self) -> float:
        """How far the estimate is above the other number, as a share of it."""
        return self.estimate / self.found - 1


def traced(
    names: tuple[str, ...] = tuple(LLAMA2_HOURS),
    modes: tuple[str, ...] = MODES,
    vocabularies: tuple[int, ...] = (32_000, 55_296),
) -> Iterator[Row]:
    """Yield the peaks of a forward and backward pass at 4,096 tokens, with weights and gradients in bf16."""
    from benchmarks.traced import recipe_of, trace

    for name in names:
        for vocab in vocabularies:
            for mode in modes:
                config = {**SHAPES[name], "vocab_size": vocab}
                written = "{every_n: 2}" if mode == "every_n: 2" else mode
                recipe = recipe_of([f"model.activation_checkpointing={written}"])
                settings = MemorySettings(
                    stage=0,
                    world_size=1,
                    seq_len=recipe.seq_len,
                    recompute=mode.partition(":")[0],
                    every_n=2 if mode == "every_n: 2" else 1,
                    device="cpu",
                )
                peak = trace(config, recipe).peak
                what = f"{name}, {vocab:,} pieces, {mode}"
                yield Row(what, bare_peak(Shape.of(config), settings, 1) / GIB, peak / GIB, "GiB")


def measured(runs: tuple[tuple[str, str, int, str], ...] = MEASURED) -> Iterator[Row]:
    """Yield the peaks of all tensors of a rank in the second step, host and device together, in MiB."""
    from benchmarks.gpu.models import recipe
    from benchmarks.plan_worker import MICRO, SIZE

    for preset, dtype, ranks, mode in runs:
        path = SHIPPED / f"{preset}.json"
        found = _run(path, dtype, ranks, mode)
        config = {**SIZE.init, "model_type": "llama", "vocab_size": SIZE.vocab}
        made = recipe(SIZE, dtype, f"model.activation_checkpointing={mode}")
        settings = memory_settings(made, read_preset(path), config, ranks, cuda=False)
        memory = estimate(Shape.of(config), settings)
        what = f"{preset}, {dtype}, {ranks} rank{'s' * (ranks > 1)}, {mode}"
        yield Row(what, (memory.peak(MICRO) + memory.host) / 2**20, found["peak"] / 2**20, "MiB")


def _run(preset: Path, dtype: str, ranks: int, mode: str) -> dict[str, Any]:
    """Start the ranks of `plan_worker`; return what rank 0 found."""
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.plan_worker", str(preset), dtype, mode]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, "DS_ACCELERATOR": "cpu", **common, "RANK": str(k), "LOCAL_RANK": str(k)},
            stdout=subprocess.PIPE if k == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE if k == 0 else subprocess.DEVNULL,
            text=True,
        )
        for k in range(ranks)
    ]
    out, err = processes[0].communicate()
    for process in processes:
        process.wait()
    if processes[0].returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{err[-3000:]}")
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def published() -> Iterator[Row]:
    """Yield GPU hours at the assumed MFU beside Meta's, and ZeRO's states beside the paper's."""
    for name, hours in LLAMA2_HOURS.items():
        cost = compute_cost(SHAPES[name], [(int(2e12), 4096)], 1, gpu="A100", dtype="bf16", mfu=None)
        assert cost.gpu_hours is not None
        implied = cost.gpu_hours * cost.mfu / hours
        note = (
            f"GPU hours for 2T tokens on A100; Meta's are {implied:.1%} MFU, the plan assumes {cost.mfu:.0%}"
        )
        yield Row(name, cost.gpu_hours, hours, note)
    count, ranks = 7.5e9, 64
    for stage, paper in ZERO_7_5B.items():
        weights = 2 * count / (ranks if stage == 3 else 1)
        gradients = 4 * count / (ranks if stage >= 2 else 1)
        optimizer = 12 * count / (ranks if stage else 1)
        without = weights + gradients / 2 + optimizer
        note = f"GB of states; {without / 1e9:.1f} with the paper's 16-bit gradients; here they are fp32"
        yield Row(f"7.5B, ZeRO-{stage}, {ranks} GPUs", (weights + gradients + optimizer) / 1e9, paper, note)


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "traced": traced,
    "measured": measured,
    "published": published,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=TABLES)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = list(TABLES[args.what]())
    cells = [
        [row.what, f"{row.estimate:,.1f}", f"{row.found:,.1f}", f"{row.off:+.1%}", row.note] for row in rows
    ]
    print(text_table(("what", "plan", args.what, "off by", "note"), cells))
    if args.json:
        tree = {**surroundings(), "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(tree, indent=2) + "\n")


if __name__ == "__main__":
    main()
