"""The report's pictures of a forgetting budget: what was measured, what was allowed, what was decided."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trainer.metrics import names
from trainer.metrics.progress import short
from trainer.report.charts import Line, chart
from trainer.report.runs import RunHistory


def budgets(arms: Sequence[RunHistory]) -> str:
    """Return a section with two pictures per arm that has a forgetting budget; empty if none has."""
    drawn = "".join(_pictures(arm) for arm in arms if arm.series(names.BUDGET))
    if not drawn:
        return ""
    note = (
        "Forgetting as the run measured it to steer its replay, with the interval of 95 % in pale lines, the "
        "budget, and the audit set, which the run never saw."
    )
    head = f"<section><h2>Forgetting budget</h2><p class='note'>{note}</p>"
    return f"{head}<div class='grid'>{drawn}</div></section>"


def _pictures(arm: RunHistory) -> str:
    first = arm.number
    lines = [
        _line(arm, names.BUDGET_LOW, "", first, faint=True),
        _line(arm, names.BUDGET_HIGH, "", first, faint=True),
        _line(arm, names.BUDGET_READING, "measured", first, dots=True),
        _line(arm, names.BUDGET, "budget", first + 1),
    ]
    audit = names.of_average(names.AUDIT_FORGETTING)
    audit = audit if arm.series(audit) else names.AUDIT_FORGETTING
    if arm.series(audit):
        lines.append(_line(arm, audit, "audit", first + 2, dots=True))
    forgetting = chart(
        lines,
        x_format=short,
        y_format="{:+.3f}".format,
        zero=True,
        described=f"Forgetting and its budget, {arm.name}",
    )
    ratio = chart(
        [_line(arm, names.REPLAY_RATIO, "replay", first, dots=True)],
        x_format=short,
        y_format="{:.0%}".format,
        zero=True,
        described=f"Replay ratio, {arm.name}",
    )
    return _figure(
        f"{arm.name}: forgetting", "upstream bits per byte above the base's", forgetting
    ) + _figure(f"{arm.name}: replay", "the ratio that was decided", ratio)


def _line(
    arm: RunHistory, metric: str, label: str, number: int, *, faint: bool = False, dots: bool = False
) -> Line:
    series = arm.series(metric)
    return Line(label, number, series.tokens, series.values, faint=faint, dots=dots)


def _figure(title: str, what: str, picture: str) -> str:
    return f"<figure><figcaption><b>{escape(title)}</b>{escape(what)}</figcaption>{picture}</figure>"
