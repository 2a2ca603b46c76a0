"""Step 3 of benchmarks/gpu.sh: what a run saves on the card, a kill does not take away.

    python -m benchmarks.gpu.saved --out DIR [--cpu] [--minutes M]

Real runs of `launch/train.py`, as many at once as there are: undisturbed, the same again, killed during an
asynchronous save and resumed, from the card to the CPU and back. Then an export's logits, and one larger run
alone for what a save costs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import runs
from benchmarks.gpu.rows import options, row, trial

CLOSE = 1e-4
"""Relative difference of losses that the card and the CPU may have, both in fp32."""


@dataclass(frozen=True)
class Case:
    """A way to train."""

    dtype: str
    preset: str
    attention: str = "auto"

    @property
    def name(self) -> str:
        """For rows."""
        attention = "" if self.attention == "auto" else f", {self.attention} attention"
        return f"{self.dtype}, {self.preset.removesuffix('.json')}{attention}"

    @property
    def key(self) -> str:
        """For files."""
        return f"{self.dtype}-{self.preset.removesuffix('.json')}-{self.attention}"


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    data: Path
    steps: int
    save_every: int
    sizes: dict[str, Any]
    cpu: bool
    until: float

    def recipe(self, case: Case, what: str) -> Path:
        """The recipe file of one run of a case."""
        return runs.recipe(
            self.data,
            self.run(case, what),
            steps=self.steps,
            save_every=self.save_every,
            preset=case.preset,
            dtype=case.dtype,
            attention=case.attention,
            **self.sizes,
        )

    def run(self, case: Case, what: str) -> Path:
        """The directory of one run of a case."""
        return self.data / f"{case.key}-{what}"

    def start(self, recipe: Path, *overrides: str, on_cpu: bool = False, launcher: bool = False) -> runs.Run:
        """The process of a run; in the dry run all of them share this process's imports."""
        return runs.Run(recipe, *overrides, on_cpu=on_cpu, launcher=launcher and not self.cpu)

    def left(self) -> float:
        """Seconds that remain."""
        return max(1.0, self.until - time.monotonic())


def main() -> int:
    """Always 0: what fails is a row."""
    args = options()
    if args.cpu:
        os.environ |= runs.ON_CPU
    row("started", note="toy sizes on the CPU" if args.cpu else "")
    with tempfile.TemporaryDirectory(prefix="rewarm-saved-") as folder:
        data = runs.make_data(Path(folder))
        until = time.monotonic() + 60 * args.minutes - 5
        toy = {"hidden": 32, "layers": 1, "seq_len": 32}
        sizes = toy if args.cpu else {}
        bench = Bench(data, 24 if args.cpu else 64, 4 if args.cpu else 8, sizes, args.cpu, until)
        cases = [Case("fp32", "zero1.json")]
        if not args.cpu:
            cases = [Case("bf16", "zero2.json"), *cases, Case("bf16", "zero3.json")]
        with trial("killed and resumed"):
            differing = survive(bench, cases)
            if differing and not args.cpu:
                row(
                    "losses differ run by run",
                    note="the same with eager attention, to see where it comes from",
                )
                survive(bench, [Case(case.dtype, case.preset, "eager") for case in differing])
        with trial("export"):
            exported(bench, next(case for case in cases if case.dtype == "fp32"))
        with trial("cost of a save"):
            cost(bench)
    return 0


def survive(bench: Bench, cases: list[Case]) -> list[Case]:
    """Undisturbed, again, killed and resumed, across devices; the cases whose two undisturbed runs differ."""
    whole = {case: bench.start(bench.recipe(case, "whole")) for case in cases}
    again = {}
    for case in () if bench.cpu else cases:
        again[case] = bench.start(bench.recipe(case, "again"), launcher=case is cases[0])
    killed = {case: bench.start(bench.recipe(case, "killed")) for case in cases}
    single = [case for case in cases if case.dtype == "fp32" and case.attention == "auto"]
    step = 8 * bench.sizes.get("seq_len", 128)
    halfway = f"stop_after={bench.steps // 2 * step}"
    on_cpu = {case: bench.start(bench.recipe(case, "from-cpu"), halfway, on_cpu=True) for case in single}
    at = kill_when_ripe(bench, killed)
    resumed = {}
    for case, step_of_kill in at.items():
        if step_of_kill is None:
            continue
        if case in single:
            copied(bench, case, "killed", "to-cpu")
        resumed[case] = bench.start(bench.recipe(case, "killed"))
    to_cpu = {case: bench.start(bench.recipe(case, "to-cpu"), on_cpu=True) for case in single if at.get(case)}
    back = {
        case: bench.start(bench.recipe(case, "from-cpu"))
        for case in single
        if ended(bench, f"{case.name}: begun on the CPU", on_cpu[case])
    }
    differing = []
    for case in cases:
        with trial(f"{case.name}: undisturbed"):
            if not ended(bench, f"{case.name}: undisturbed", whole[case]):
                continue
            if (
                case in again
                and ended(bench, f"{case.name}: a second time", again[case])
                and not compared(bench, case, "again", f"{case.name}: two undisturbed runs are equal")
            ):
                differing.append(case)
            if case in resumed and ended(bench, f"{case.name}: resumed after kill -9", resumed[case]):
                name = f"{case.name}: equal to an undisturbed run after kill -9"
                compared(bench, case, "killed", name, note=twice(bench.run(case, "killed"), at[case]))
    for case in single:
        with trial(f"{case.name}: from the card to the CPU and back"):
            if case in to_cpu and ended(bench, f"{case.name}: resumed on the CPU", to_cpu[case]):
                near(bench, case, "to-cpu", f"{case.name}: a checkpoint of the card resumes on the CPU")
            if case in back and ended(bench, f"{case.name}: resumed on the card", back[case]):
                near(bench, case, "from-cpu", f"{case.name}: a checkpoint of the CPU resumes on the card")
    return differing


def kill_when_ripe(bench: Bench, started: dict[Case, runs.Run]) -> dict[Case, int | None]:
    """Kills each run once it is some steps past a checkpoint; the step, None for one that ended before."""
    at: dict[Case, int | None] = {}
    while len(at) < len(started):
        for case, process in started.items():
            if case in at:
                continue
            run = bench.run(case, "killed")
            if process.poll() is not None or bench.left() <= 1.0:
                process.kill()
                at[case] = None
                row(f"{case.name}: to be killed", ok=False, note=f"ended too early: {process.last_words()}")
            elif (saved := runs.last_saved(run)) and runs.last_step(run) > saved + 1:
                process.kill()
                at[case] = runs.last_step(run)
        time.sleep(0.01)
    return at


def ended(bench: Bench, name: str, process: runs.Run) -> bool:
    """Waits for a run; a row only where it failed."""
    status = process.wait(bench.left())
    if status == 0:
        return True
    what = "took too long" if status is None else f"exit status {status}"
    row(name, ok=False, note=f"{what}: {process.last_words()}")
    return False


def compared(bench: Bench, case: Case, what: str, name: str, note: str = "") -> bool:
    """A row: whether a run has the undisturbed one's numbers to the last digit."""
    one, other = runs.trace(bench.run(case, "whole")), runs.trace(bench.run(case, what))
    parted = runs.first_difference(one, other)
    largest = runs.largest_difference(one, other)
    text = "; ".join(filter(None, [f"{len(one)} steps", note, parted]))
    row(name, ok=not parted, value=largest, unit="largest relative difference of losses", note=text)
    return not parted


def twice(run: Path, killed_at: int | None) -> str:
    """What a kill cost."""
    from trainer.metrics.jsonl import read_attempts

    restored = [start.restored_step for start in read_attempts(run)]
    return f"killed at step {killed_at}, gone on from step {restored[-1]}"


def near(bench: Bench, case: Case, what: str, name: str) -> None:
    """A row: whether a run that changed device has the undisturbed one's losses, as far as sums can."""
    from trainer.metrics.jsonl import read_attempts

    one, other = runs.trace(bench.run(case, "whole")), runs.trace(bench.run(case, what))
    restored = read_attempts(bench.run(case, what))[-1].restored_step
    first = (restored or 0) + 1
    largest = runs.largest_difference(one, other)
    at_first = runs.largest_difference({first: one[first]}, other) if first in one else float("nan")
    row(
        name,
        ok=restored is not None and set(one) == set(other) and largest < CLOSE,
        value=largest,
        unit="largest relative difference of losses",
        note=f"gone on from step {restored}; {at_first:.1e} at the first step after it; {len(one)} steps",
    )


def copied(bench: Bench, case: Case, what: str, to: str) -> None:
    """A copy of a run directory, under the name of another run."""
    shutil.copytree(bench.run(case, what), bench.run(case, to))
    resolved = bench.run(case, to) / "recipe.resolved.yaml"
    text = resolved.read_text(encoding="utf-8")
    resolved.write_text(text.replace(bench.run(case, what).name, bench.run(case, to).name), encoding="utf-8")


def exported(bench: Bench, case: Case) -> None:
    """A row: the export of the last checkpoint against the weights that it holds, on the card."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.gpu.models import build
    from trainer.checkpoint import rank_files
    from trainer.checkpoint.export import export_checkpoint
    from trainer.checkpoint.history import find_checkpoint
    from trainer.recipe.load import parse_recipe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = find_checkpoint(bench.run(case, "whole"))
    out = bench.data / "exported"
    export_checkpoint(checkpoint, out, "fp32", 5_000_000_000)
    from tokenization.tokenizer.files import open_tokenizer

    size = open_tokenizer(bench.data / "tokenizer").size
    trained = build(parse_recipe(checkpoint.manifest.recipe), size, weights=False)
    reader = rank_files.Reader(checkpoint.files)
    trained.load_state_dict(
        {name: reader.whole(name) for name in trained.state_dict() if name in reader.pieces}
    )
    ids = torch.arange(3, 67).view(1, 64).to(device)
    with torch.no_grad():
        ours = trained.to(device).eval().hf(ids).logits[..., :size]
        theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(device)(ids).logits
    largest = (ours - theirs).abs().max().item()
    name = "the export's logits are the trained model's"
    row(name, ok=largest < 1e-5, value=largest, unit="largest difference", note=f"fp32 on {device}")


def cost(bench: Bench) -> None:
    """Rows: seconds that asynchronous saves of a larger run block, the step time and memory during a save."""
    from trainer.metrics.jsonl import read_metrics

    if bench.cpu:
        sizes, steps, every = bench.sizes, 12, 4
    else:
        sizes = {"hidden": 1536, "layers": 16, "seq_len": 2048}
        every = 60 if bench.left() > 75 else 30
        steps = 5 * every // 2
    if not bench.cpu and bench.left() < 35:
        row("cost of a save", note="not tried: no time left")
        return
    run = bench.data / "cost"
    recipe = runs.recipe(
        bench.data, run, steps=steps, save_every=every, preset="zero2.json", dtype="bf16", **sizes
    )
    began = time.perf_counter()
    if not ended(bench, "cost of a save", bench.start(recipe, "checkpoint.keep_last=2")):
        return
    records = [record for record in read_metrics(run) if record["step"] > 0]
    seconds = time.perf_counter() - began
    saved = sorted(run.glob("checkpoints/step-*/rank-*.safetensors"))[-1].stat().st_size
    row("size of a checkpoint", value=round(saved / 1e9, 3), unit="GB", note=f"whole run {seconds:.1f} s")
    measured = [record for record in records if "perf/save_s" in record]
    for number, record in enumerate(measured):
        blocked, whole = record["perf/save_blocked_s"], record["perf/save_s"]
        which = ("first save, whose host memory is made", "second save", "last save, which the run waits for")
        note = f"{which[min(number, 2)]}; committed after {whole:.2f} s, {saved / 1e9 / whole:.2f} GB/s"
        row(f"a save blocks, {number + 1}", value=round(blocked, 4), unit="s", note=note)
    if measured:
        step_during_save(records, every, measured[0]["step"])
    peaks = {record["step"]: record["mem/peak_gib"] for record in records if "mem/peak_gib" in record}
    before, after = peaks.get(every - 1), max(peaks.values(), default=None)
    if before is not None and after is not None:
        row("peak memory without a save", value=round(before, 3), unit="GiB", note=f"until step {every - 1}")
        row("peak memory with saves", value=round(after, 3), unit="GiB", note=f"{after - before:+.3f} GiB")


def step_during_save(records: list[dict[str, Any]], every: int, until: int) -> None:
    """A row: the time of a step while the first save is being written, and before."""
    took = {record["step"]: record["perf/step_s"] for record in records if "perf/step_s" in record}
    without = [took[step] for step in range(every // 2, every) if step in took]
    during = [took[step] for step in range(every + 2, until) if step in took]
    if without and during:
        alone, with_save = statistics.median(without), statistics.median(during)
        row(
            "a step during a save",
            value=round(with_save / alone, 3),
            unit="x",
            note=f"median {1e3 * with_save:.1f} ms, {1e3 * alone:.1f} ms without",
        )


if __name__ == "__main__":
    sys.exit(main())
