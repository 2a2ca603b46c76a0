"""Runs side by side: what each has recorded, and the table that compares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenization.errors import UserError
from tokenization.tables import text_table
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.metrics.jsonl import Attempt, Record, equal_numbers, history_of, read_attempts, trained_twice
from trainer.recipe import load
from trainer.recipe.schema import Recipe
from trainer.scheduler.state import RunState
from trainer.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class Series:
    """A metric over the tokens of a run; finite values only."""

    tokens: tuple[int, ...]
    values: tuple[float, ...]

    def __bool__(self) -> bool:
        return bool(self.tokens)

    @property
    def start(self) -> float:
        """The first value; NaN if there is none."""
        return self.values[0] if self.values else math.nan

    @property
    def end(self) -> float:
        """The last value; NaN if there is none."""
        return self.values[-1] if self.values else math.nan


@dataclass(frozen=True)
class RunHistory:
    """One run of several that are compared."""

    name: str
    number: int
    """Place among the runs, from 0; it gives the colour."""
    path: Path
    records: list[Record]
    attempts: list[Attempt]
    repeated: list[tuple[Record, Record]]
    """Steps that were done again after a restore: (before, afterwards)."""
    lineage: list[dict[str, Any]]
    """What was decided at each start, and why."""
    recipe: Recipe | None
    """As resolved, if the run directory has it."""

    def series(self, metric: str) -> Series:
        """A metric's history."""
        points = [
            (record["tokens"], float(record[metric]))
            for record in self.records
            if metric in record and math.isfinite(record[metric])
        ]
        return Series(tuple(tokens for tokens, _ in points), tuple(value for _, value in points))

    @property
    def tokens(self) -> int:
        """Tokens that the run has consumed."""
        return int(self.records[-1]["tokens"]) if self.records else 0

    @property
    def from_scratch(self) -> bool:
        """Whether it began with random weights: there was nothing to forget."""
        return self.recipe is not None and self.recipe.model.base is None

    @property
    def forgetting(self) -> float:
        """Upstream bits per byte at the end less those of the base; NaN without a base or a measurement."""
        if self.from_scratch:
            return math.nan
        measured = self.series(names.FORGETTING)
        upstream = self.series(names.UPSTREAM)
        return measured.end if measured else upstream.end - upstream.start

    @property
    def replay(self) -> float | None:
        """Replay's share of the last phase's tokens, as the recipe ends; None without a recipe."""
        if self.recipe is None:
            return None
        segment = self.recipe.phases[-1].mixture[-1]
        if segment.replay_ratio is not None:
            return float(segment.replay_ratio)
        roles = self.recipe.sources
        return float(sum(weight for name, weight in segment.weights.items() if roles[name].role == "replay"))

    def phase_ends(self) -> list[int]:
        """Return the tokens of the run at which each phase of the recipe ends.

        Those that have begun end where the run itself recorded it: a batch size that changed moves the end.
        """
        if self.recipe is None:
            return []
        states = [RunState.from_json(entry["state"]) for entry in self.lineage[-1:] if "state" in entry]
        begun = [record.samples for state in states for record in state.phases]
        planned = [self.recipe.phase_samples(number) for number in range(len(begun), len(self.recipe.phases))]
        return [samples * self.recipe.seq_len for samples in accumulate(begun + planned)]

    @property
    def restored_at(self) -> list[tuple[int, int]]:
        """(step, tokens) of each checkpoint that the run was restored from.

        The tokens are those of the last record up to that step: not every step need be recorded.
        """
        steps = [attempt.restored_step for attempt in self.attempts if attempt.restored_step is not None]
        before = [[r["tokens"] for r in self.records if r["step"] <= step] for step in steps]
        return [(step, int(tokens[-1])) for step, tokens in zip(steps, before, strict=True) if tokens]

    @property
    def restore_error(self) -> float:
        """Largest difference of loss, LR or gradient norm in any step that was done twice; 0 is exact.

        Infinite if one of two numbers is not finite and the other is another one.
        """
        compared = (names.LOSS, names.LR, names.GRAD_NORM)
        differences = [
            abs(before[metric] - after[metric])
            for before, after in self.repeated
            for metric in compared
            if metric in before and metric in after and not equal_numbers(before[metric], after[metric])
        ]
        return max((math.inf if math.isnan(each) else each for each in differences), default=0.0)


def gather_runs(runs: Sequence[str | Path]) -> list[RunHistory]:
    """Reads run directories; their names are as short as they can be and still differ.

    Raises:
        UserError: no runs, a directory without metrics, or a damaged file in it.
    """
    paths = [Path(run).resolve() for run in runs]
    if not paths:
        raise UserError("no runs to report on", fix="give run directories")
    for parts in range(1, 1 + max(len(path.parts) for path in paths)):
        short_names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(short_names)) == len(set(paths)):
            break
    return [
        _history(name, number, path)
        for number, (name, path) in enumerate(zip(short_names, paths, strict=True))
    ]


def _history(name: str, number: int, path: Path) -> RunHistory:
    attempts = read_attempts(path)
    run = RunDirectory(path)
    return RunHistory(
        name=name,
        number=number,
        path=path,
        records=history_of(attempts),
        attempts=attempts,
        repeated=trained_twice(attempts),
        lineage=run.read_lineage(logger.warning),
        recipe=_recipe(run.recipe),
    )


def _recipe(path: Path) -> Recipe | None:
    return load.load_recipe(path) if path.exists() else None


HEADINGS = ("arm", "tokens", "upstream", "forgetting", "downstream", "gain")


def compare_runs(arms: Sequence[RunHistory]) -> str:
    """The comparison as plain text: bits per byte from start to end, less is better.

    `forgetting` is how much upstream got worse, `gain` how much downstream got better.
    """
    return text_table(HEADINGS, [cells(arm) for arm in arms])


def cells(arm: RunHistory) -> tuple[str, ...]:
    """An arm's row under `HEADINGS`."""
    upstream, downstream = arm.series(names.UPSTREAM), arm.series(names.DOWNSTREAM)
    return (
        arm.name,
        f"{arm.tokens:,}",
        _change(upstream),
        _number(arm.forgetting, "+.4f"),
        _change(downstream),
        _number(downstream.start - downstream.end, "+.4f"),
    )


def _change(series: Series) -> str:
    return f"{series.start:.4f} → {series.end:.4f}" if series else "–"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"
