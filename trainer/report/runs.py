"""Runs side by side: what each has recorded, and the table that compares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from tokenization.errors import UserError
from tokenization.tables import text_table
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.metrics.jsonl import (
    Attempt,
    MeasuredOn,
    Record,
    equal_numbers,
    history_of,
    read_attempts,
    trained_twice,
)
from trainer.recipe import load
from trainer.recipe.schema import Recipe
from trainer.scheduler.state import RunState
from trainer.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class Series:
    """A metric over the tokens of a run: what can be drawn of it, and its two ends as recorded."""

    tokens: tuple[int, ...]
    values: tuple[float, ...]
    """Finite ones only."""
    start: float
    """The first value, finite or not; NaN if there is none."""
    end: float
    """The last value, finite or not; NaN if there is none."""

    def __bool__(self) -> bool:
        return bool(self.tokens)


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
        """A metric's history; of scores those that are measured on the same as the last one."""
        points = [(r["tokens"], float(r[metric])) for r in self.comparable(metric) if metric in r]
        drawn = [(tokens, value) for tokens, value in points if finite(value)]
        return Series(
            tuple(tokens for tokens, _ in drawn),
            tuple(value for _, value in drawn),
            start=points[0][1] if points else math.nan,
            end=points[-1][1] if points else math.nan,
        )

    def comparable(self, metric: str) -> list[Record]:
        """Return the records whose score of `metric`, if any, is measured on the same as the last one."""
        stream = names.stream_of(metric)
        if stream is None:
            return self.records
        last = self.measured_on.get(stream)
        on = {attempt.number: attempt.measured_on.get(stream, last) for attempt in self.attempts}
        return [record for record in self.records if on.get(record["attempt"], last) == last]

    @property
    def measured_on(self) -> MeasuredOn:
        """What the last scores are measured on, by role and by set; of older runs, what the recipe says."""
        on = {attempt.number: attempt.measured_on for attempt in self.attempts}
        found: MeasuredOn = {}
        for record in reversed(self.records):
            for stream in filter(None, map(names.stream_of, record)):
                if names.stream_bits_per_byte(stream) in record and stream not in found:
                    found[stream] = on[record["attempt"]].get(stream) or self._from_recipe(stream)
        return found

    def _from_recipe(self, stream: str) -> dict[str, Any]:
        if self.recipe is None:
            return {}
        validation = self.recipe.validation
        prefix = validation.paths.get(stream)
        return {"path": prefix, "max_tokens": validation.max_tokens, "seq_len": self.recipe.seq_len}

    @property
    def diverged_at(self) -> int | None:
        """The step from which on a loss is not finite until the end of the run; None if all ended finite."""
        found = []
        for metric in (names.LOSS, names.UPSTREAM, names.DOWNSTREAM):
            measured = [(r["step"], finite(r[metric])) for r in self.records if metric in r]
            since = [step for step, _ in takewhile(lambda point: not point[1], reversed(measured))]
            found += since[-1:]
        return min(found, default=None)

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
        """Upstream bits per byte at the end less those of the base.

        NaN without a base or a measurement, and of a run that diverged.
        """
        if self.from_scratch or self.diverged_at is not None:
            return math.nan
        if any(names.FORGETTING in record for record in self.records):
            return self.series(names.FORGETTING).end
        upstream = self.series(names.UPSTREAM)
        return upstream.end - upstream.start

    @property
    def replay(self) -> float | None:
        """Replay's share of the last phase's tokens, as the recipe ends; None without a recipe."""
        if self.recipe is None:
            return None
        segment = self.recipe.phases[-1].mixture[-1]
        if segment.forgetting_budget is not None and (decided := self.series(names.REPLAY_RATIO)):
            return decided.end
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
        begun = [record.samples * record.data.seq_len for state in states for record in state.phases]
        planned = [
            self.recipe.phase_samples(number) * self.recipe.seq_len_of(number)
            for number in range(len(begun), len(self.recipe.phases))
        ]
        return list(accumulate(begun + planned))

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


def alike(runs: Sequence[RunHistory]) -> list[list[RunHistory]]:
    """Group runs by what their scores are measured on: within a group, scores can be compared."""
    groups: list[list[RunHistory]] = []
    for run in runs:
        own = next((group for group in groups if not any(differing(run, other) for other in group)), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    return groups


def differing(one: RunHistory, other: RunHistory) -> list[str]:
    """List what the scores of two runs are measured on and differs: `upstream tokens 1,025 and 257`."""
    found = []
    for stream in names.STREAMS:
        if stream in one.measured_on and stream in other.measured_on:
            left, right = one.measured_on[stream], other.measured_on[stream]
            found += [
                f"{stream} shards (another text or tokenizer)"
                if name == "fingerprint"
                else f"{stream} {name} {left.get(name, 'unknown')} and {right.get(name, 'unknown')}"
                for name in dict.fromkeys([*left, *right])
                if left.get(name) != right.get(name)
            ]
    return found


def unlike_line(groups: Sequence[Sequence[RunHistory]]) -> str:
    """Say why the scores of these groups cannot be compared; empty if there is only one group."""
    if len(groups) < 2:
        return ""
    first = groups[0][0]
    whys = [
        f"{first.name} and {group[0].name} differ in {', '.join(differing(first, group[0]))}"
        for group in groups[1:]
    ]
    what = "Scores of different tables are not comparable: they are measured on unlike things"
    return f"{what}. {'; '.join(whys)}."


HEADINGS = ("arm", "tokens", "upstream", "forgetting", "downstream", "gain")


def compare_runs(arms: Sequence[RunHistory]) -> str:
    """The comparison as plain text: bits per byte from start to end, less is better.

    `forgetting` is how much upstream got worse, `gain` how much downstream got better. Runs whose scores
    cannot be compared stand in tables of their own.
    """
    groups = alike(arms)
    tables = [text_table(HEADINGS, [cells(arm) for arm in group]) for group in groups]
    return "\n\n".join([*tables, *filter(None, [unlike_line(groups)])])


def cells(arm: RunHistory) -> tuple[str, ...]:
    """An arm's row under `HEADINGS`."""
    upstream, downstream = arm.series(names.UPSTREAM), arm.series(names.DOWNSTREAM)
    diverged = "" if arm.diverged_at is None else f"diverged at step {arm.diverged_at}"
    gain = math.nan if diverged else downstream.start - downstream.end
    return (
        arm.name,
        f"{arm.tokens:,}",
        _change(upstream, diverged) or diverged or "–",
        _number(arm.forgetting, "+.4f"),
        _change(downstream, diverged and "diverged") or "–",
        _number(gain, "+.4f"),
    )


def _change(series: Series, diverged: str) -> str:
    """From the first to the last score; empty if there is none."""
    if math.isnan(series.start) and not series:
        return ""
    return f"{series.start:.4f} → {diverged or format(series.end, '.4f')}"


def _number(value: float, form: str) -> str:
    return format(value, form) if finite(value) else "–"


def finite(value: float) -> bool:
    """Whether a number can be drawn: no loss of a run that still learns is anywhere near the bound."""
    return abs(value) < 1e100
