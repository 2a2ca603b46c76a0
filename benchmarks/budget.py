"""The forgetting budget beside fixed replay ratios, on the quickstart's text.

    python -m benchmarks.budget                                # after launch/quickstart.sh, some hours
    python -m benchmarks.budget --seeds 1 --tokens 102400      # half an hour
    python -m benchmarks.budget --parallel 8                   # eight arms at a time share a GPU

Trains an arm for each budget, each fixed ratio and each seed, all on as many tokens, with averaged weights.
Half of the held-out English is `validation.upstream`, which a budget is measured on; the other half is the
audit set, which no run sees. Prints Markdown: what each arm forgot of the audit set and learnt of the new
text; the ratio r*, interpolated between the fixed ones, that just meets each budget at the end, or all the
way; and how far the budget's arm is from what r* learns. Draws OUT/budget.svg and .png. Run it again after
an interruption: finished arms are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from tokenization import disk
from tokenization.prepare.prepare import prepare
from trainer.metrics import names
from trainer.metrics.jsonl import history_of, read_attempts
from trainer.report.charts import Line, chart
from trainer.report.document import write_figures

ROOT = Path(__file__).resolve().parents[1]

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ended:
    """How an arm ended, its averaged weights measured."""

    audit: float
    """Forgetting of the audit set, bits per byte."""
    worst: float
    """The most of it at any validation."""
    upstream: float
    """Of the set that a budget is measured on, as all of it is validated."""
    downstream: float
    """Bits per byte of the new text."""
    replayed: float
    """Share of its tokens that were replay."""
    measuring: float
    """Share of its time, validation and saves left out, that went into a budget's measurements."""


@dataclass(frozen=True)
class Arm:
    """The same recipe with several seeds."""

    name: str
    mixture: str
    ratio: float | None
    """The fixed replay ratio."""
    budget: float | None

    def mean(self, ended: Sequence[Ended], what: str) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(getattr(one, what) for one in ended)

    def deviation(self, ended: Sequence[Ended], what: str) -> float:
        """Return the standard deviation over the seeds; NaN of one."""
        values = [getattr(one, what) for one in ended]
        return statistics.stdev(values) if len(values) > 1 else math.nan


def held_out(quickstart: Path, out: Path) -> None:
    """Split the held-out English by documents: one half to steer by, one to report."""
    lines = (quickstart / "text" / "english-validation.jsonl").read_text(encoding="utf-8").splitlines(True)
    for name, half in (("upstream", lines[::2]), ("audit", lines[1::2])):
        text, prefix = out / "text" / f"{name}.jsonl", out / "tokens" / name
        if prefix.with_suffix(".json").exists():
            continue
        text.parent.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(text, "".join(half))
        prepare([str(text)], str(quickstart / "tokenizers" / "extended"), str(prefix), workers=1)


def train(arm: Arm, seed: int, args: argparse.Namespace) -> Ended:
    """Train an arm to its end, or go on with it, and read what it measured."""
    run, tokens = args.out / f"{arm.name}-{seed}", args.quickstart / "tokens" / "extended"
    overrides = {
        "name": run.name,
        "seed": seed,
        "model.base": args.quickstart / "models" / "base-extended",
        "model.tokenizer": args.quickstart / "tokenizers" / "extended",
        "model.average": f"{{kind: ema, half_life: {args.tokens // 40}}}",
        "sources.chinese.path": tokens / "chinese-train",
        "sources.english.path": tokens / "english-train",
        "validation.upstream": args.out / "tokens" / "upstream",
        "validation.audit": args.out / "tokens" / "audit",
        "validation.downstream": tokens / "chinese-validation",
        "validation.every_tokens": args.tokens // 20,
        "sources.chinese.max_epochs": 8,
        "sources.english.max_epochs": 8,
        "global_batch_size": args.batch,
        "phases.0.tokens": args.tokens,
        "phases.0.mixture": f"{{{arm.mixture}}}",
        "checkpoint.every_tokens": args.tokens // 2,
        "logging.tensorboard": "false",
    }
    start(run, overrides, args.parallel)
    return read(run)


def start(run: Path, overrides: Mapping[str, object], parallel: int) -> None:
    """Train the quickstart's recipe with other fields on one rank, beside others, to its end.

    Raises:
        SystemExit: it failed.
    """
    recipe = ROOT / "launch" / "recipes" / "quickstart.yaml"
    command = [sys.executable, str(ROOT / "launch" / "train.py"), str(recipe), f"run_dir={run}"]
    command += [f"{field}={value}" for field, value in overrides.items()]
    threads = max(1, (os.cpu_count() or 1) // parallel)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": str(ROOT)}
    if os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] += f":{os.environ['PYTHONPATH']}"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{run}: ended with status {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")


def trained(
    jobs: Sequence[Job], train_one: Callable[[Job], Result], parallel: int
) -> Iterator[tuple[Job, Result]]:
    """Train jobs, `parallel` at a time; yield each with its result, in order."""
    with ThreadPoolExecutor(parallel) as pool:
        yield from zip(jobs, pool.map(train_one, jobs), strict=True)


def read(run: Path) -> Ended:
    """Read how a run ended."""
    records = history_of(read_attempts(run, say=print))
    last = {name: value for record in records for name, value in record.items()}
    audit = names.of_average(names.AUDIT_FORGETTING)
    measured = sum(record.get(names.MEASURE_S, 0.0) for record in records)
    trained = sum(record[names.STEP_S] * (record["step"] - before) for before, record in _steps(records))
    english, chinese = (last[names.source_tokens(name)] for name in ("english", "chinese"))
    return Ended(
        last[audit],
        max(record[audit] for record in records if audit in record),
        last[names.of_average(names.FORGETTING)],
        last[names.of_average(names.DOWNSTREAM)],
        english / (english + chinese),
        measured / (measured + trained),
    )


def _steps(records: Sequence[Mapping[str, float]]) -> list[tuple[int, Mapping[str, float]]]:
    """Return the records of steps, each with the step of the one before."""
    timed = [record for record in records if names.STEP_S in record]
    return list(zip([0, *(int(record["step"]) for record in timed)], timed, strict=False))


def at_budget(fixed: Sequence[tuple[float, float, float]], budget: float) -> tuple[float, float] | None:
    """Return r* and what it learns, interpolated over logit(r) between fixed (ratio, audit, downstream).

    None if every fixed ratio, or none of them, meets the budget.
    """
    for (low, above, worse), (high, below, better) in pairwise(fixed):
        if above > budget >= below:
            share = (above - budget) / (above - below)
            logits = [math.log(ratio / (1 - ratio)) for ratio in (low, high)]
            logit = logits[0] + share * (logits[1] - logits[0])
            return 1 / (1 + math.exp(-logit)), worse + share * (better - worse)
    return None


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is on the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(mean: str, deviation: float) -> str:
    """Write a mean with the deviation of the seeds, if there are several."""
    return mean if math.isnan(deviation) else f"{mean} ± {deviation:.4f}"


def _fixed(found: dict[Arm, list[Ended]], what: str) -> list[tuple[float, float, float]]:
    """Return ratio, forgetting and downstream of the arms with a fixed ratio."""
    return [
        (arm.ratio, arm.mean(e, what), arm.mean(e, "downstream")) for arm, e in found.items() if arm.ratio
    ]


def _beside(arm: Arm, ended: Sequence[Ended], found: dict[Arm, list[Ended]], what: str) -> list[str]:
    """Compare a budget's arm with the fixed ratio that just meets the budget, at the end or all the way."""
    assert arm.budget is not None
    when = {"audit": "at the end", "worst": "at worst"}[what]
    row = [f"{arm.budget:g}", f"{spread(f'{arm.mean(ended, what):+.4f}', arm.deviation(ended, what))} {when}"]
    best = at_budget(_fixed(found, what), arm.budget)
    if best is None:
        return [*row, "not between the fixed ratios", "–", "–"]
    less, deviation = arm.mean(ended, "downstream") - best[1], arm.deviation(ended, "downstream")
    far = "" if math.isnan(deviation) else f" ({less / deviation:+.1f} deviations)"
    return [*row, f"{best[0]:.1%}", f"{best[1]:.4f}", f"{less:+.4f}{far}"]


def report(found: dict[Arm, list[Ended]], out: Path) -> None:
    """Print the tables, and draw the figure."""
    rows = []
    for arm, ended in found.items():
        cells = [
            spread(f"{arm.mean(ended, what):{form}}", arm.deviation(ended, what))
            for what, form in (
                ("audit", "+.4f"),
                ("worst", "+.4f"),
                ("upstream", "+.4f"),
                ("downstream", ".4f"),
            )
        ]
        measuring = f"{arm.mean(ended, 'measuring'):.1%}" if arm.budget is not None else "–"
        rows.append([arm.name, f"{arm.mean(ended, 'replayed'):.1%}", *cells, measuring])
    head = ("arm", "replayed", "audit, at the end", "audit, at worst", "upstream", "downstream", "measuring")
    print(markdown(head, rows))
    rows = [
        _beside(arm, ended, found, what)
        for arm, ended in found.items()
        if arm.budget is not None
        for what in ("audit", "worst")
    ]
    print()
    print(
        markdown(
            ("budget", "forgetting of the audit set", "r*", "downstream at r*", "the budget's, less it"), rows
        )
    )
    most = max((3 * arm.budget for arm in found if arm.budget is not None), default=math.inf)
    lines = []
    for number, (what, when) in enumerate((("audit", "end"), ("worst", "worst"))):
        fixed = [one for one in _fixed(found, what) if one[1] <= most]
        lines.append(
            Line(f"fixed: {when}", number, [d for *_, d in fixed], [f for _, f, _ in fixed], dots=True)
        )
        points = sorted(
            (arm.mean(ended, "downstream"), arm.mean(ended, what))
            for arm, ended in found.items()
            if arm.budget is not None
        )
        xs, ys = [x for x, _ in points], [y for _, y in points]
        lines.append(Line(f"budget: {when}", number + 2, xs, ys, dots=True))
    picture = chart(
        lines, x_format="{:.2f}".format, y_format="{:+.2f}".format, x_title="downstream, bits per byte",
        zero=True, at_end=True, described="Forgetting of the audit set over downstream",
    )  # fmt: skip
    write_figures({"budget": picture}, out)
    tree = {arm.name: [vars(one) for one in ended] for arm, ended in found.items()}
    disk.write_atomically(out / "budget.json", json.dumps(tree, indent=1))


def main() -> None:
    """Train all arms and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "budget")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=409_600)
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.05, 0.1, 0.15])
    parser.add_argument("--ratios", type=float, nargs="*", default=[1, 5, 10, 25, 50, 75], help="per cent")
    parser.add_argument("--start", type=float, default=50, help="replay that a budget starts at, per cent")
    parser.add_argument("--batch", type=int, default=8, help="global_batch_size")
    parser.add_argument("--measured", type=int, default=96, help="measured_samples of a budget")
    parser.add_argument("--parallel", type=int, default=1, help="arms at a time, each on one rank")
    args = parser.parse_args()
    args.quickstart, args.out = args.quickstart.resolve(), args.out.resolve()
    held_out(args.quickstart, args.out)
    steered = f"replay_ratio: {args.start:g}%, replay_max: 90%, decide_every: 2%, on_failure: lower_lr"
    steered += f", measured_samples: {args.measured}"
    arms = [
        Arm(f"budget-{budget:g}", f"forgetting_budget: {budget}, {steered}", None, budget)
        for budget in args.budgets
    ]
    arms += [
        Arm(f"fixed-{ratio:g}", f"replay_ratio: {ratio}%", ratio / 100, None) for ratio in sorted(args.ratios)
    ]
    jobs = [(arm, seed) for seed in range(args.seeds) for arm in arms]
    found: dict[Arm, list[Ended]] = {arm: [] for arm in arms}
    for (arm, seed), ended in trained(jobs, lambda job: train(*job, args), args.parallel):
        found[arm].append(ended)
        print(f"{arm.name}, seed {seed}: {ended}", flush=True)
    report(found, args.out)


if __name__ == "__main__":
    main()
