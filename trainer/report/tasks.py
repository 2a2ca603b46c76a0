"""Tasks of lm-eval's harness that runs have answered: a table, and a picture of each number over tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from tokenization.tables import text_table
from trainer.metrics import names
from trainer.metrics.progress import short
from trainer.report.charts import Line, chart
from trainer.report.runs import RunHistory
from trainer.report.sheet import html_sheet

TASK_HEADINGS = ("arm", "task", "metric", "at the start", "at the end", "standard error")


def task_metrics(arms: Sequence[RunHistory]) -> list[str]:
    """Return the names of the numbers on tasks, without standard errors; an average's behind the weights'."""
    found = {metric for arm in arms for record in arm.records for metric in record}
    return sorted(
        (metric for metric in found if names.task_stderr(metric)),
        key=lambda metric: (names.of_weights(metric), metric != names.of_weights(metric)),
    )


def _told(metric: str) -> tuple[str, str]:
    """Return the task that a number is on, and what it is called there."""
    weights = names.of_weights(metric)
    _, task, shown = weights.split("/", 2)
    return task, shown if metric == weights else f"{shown}, averaged weights"


def task_rows(arms: Sequence[RunHistory]) -> Iterator[tuple[str, ...]]:
    """Yield a row under `TASK_HEADINGS` for each number of each arm."""
    for arm in arms:
        for metric in task_metrics([arm]):
            numbers, error = arm.series(metric), arm.series(str(names.task_stderr(metric))).end
            start = arm.series(names.of_weights(metric)).start  # before any step the average is the weights
            told = f"±{_shown(error)}" if math.isfinite(error) else "–"
            yield arm.name, *_told(metric), _shown(start), _shown(numbers.end), told


def _shown(number: float) -> str:
    """Write a share with four places, and a number as large as a perplexity with five digits."""
    return f"{number:.4f}" if abs(number) < 10 else f"{number:.5g}"


def tasks_text(arms: Sequence[RunHistory]) -> str:
    """Return the table of tasks as plain text; empty without any."""
    rows = list(task_rows(arms))
    return text_table(TASK_HEADINGS, rows) if rows else ""


def tasks_section(arms: Sequence[RunHistory]) -> str:
    """Return the table and the pictures as HTML; empty without any."""
    rows = list(task_rows(arms))
    if not rows:
        return ""
    shown = [(arm, escape(task), escape(metric), *numbers) for arm, task, metric, *numbers in rows]
    drawn = "".join(_picture(metric, arms) for metric in task_metrics(arms))
    note = "Answered by the model as it was, through lm-eval; the standard error is that of the last number."
    return (
        f"<section><h2>Tasks</h2><p class='note'>{note}</p><div class='grid'>{drawn}</div>"
        f"{html_sheet(TASK_HEADINGS, shown, texts=3)}</section>"
    )


def _picture(metric: str, arms: Sequence[RunHistory]) -> str:
    """Return a picture of a number over tokens; empty if no arm has two of it."""
    lines = [
        Line(arm.name, arm.number, numbers.tokens, numbers.values, dots=True)
        for arm in arms
        if len((numbers := arm.series(metric)).tokens) > 1
    ]
    if not lines:
        return ""
    task, shown = _told(metric)
    picture = chart(lines, x_format=short, y_format="{:.4g}".format, described=f"{task} {shown} over tokens")
    return f"<figure><figcaption><b>{escape(task)}</b>{escape(shown)}</figcaption>{picture}</figure>"
