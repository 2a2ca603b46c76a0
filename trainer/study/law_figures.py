"""Figures of laws: what each predicts of scores that it has not seen, over what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenization.disk import refuse_existing
from trainer.report.charts import Line, chart
from trainer.report.document import write_figures
from trainer.study.laws import LARGEST_SIZE, LONGEST_BUDGET, SECOND_HALF
from trainer.study.observed import FittedLaw

_HEIGHT = 360

_SHORT = {LARGEST_SIZE: "size", LONGEST_BUDGET: "budget", SECOND_HALF: "half"}
"""What a back-test held out, as a label has room for it."""


def draw_law(fitted: FittedLaw) -> str:
    """Return a picture of a law: on the diagonal are predictions that came true; seen points are pale."""
    fit = fitted.fit
    predicted = fit.law.predict(fit.values, fit.data)
    lines = [Line("", 0, fit.data.loss.tolist(), predicted.tolist(), faint=True, joined=False)]
    for number, test in enumerate(fitted.tests):
        xs, ys = zip(*sorted(zip(test.measured.tolist(), test.predicted.tolist(), strict=True)), strict=True)
        label = f"{_SHORT[test.held_out]} {test.error:.2%}"
        lines.append(Line(label, number, xs, ys, joined=False))
    ends = [float(fit.data.loss.min()), float(fit.data.loss.max())]
    lines.append(Line("", 6, ends, ends, faint=True))
    return chart(
        lines,
        x_format="{:.3f}".format,
        y_format="{:.3f}".format,
        x_title=f"{fitted.stream} measured, bits per byte; up: predicted",
        described=f"predictions of {fit.law.name} on {fitted.stream} over what was measured",
        height=_HEIGHT,
    )


def draw_laws(laws: Sequence[FittedLaw]) -> dict[str, str]:
    """Return the picture of each law by the name of its file beside a study's own figures."""
    return {f"law-{_file(one)}": draw_law(one) for one in laws}


def law_captions(laws: Sequence[FittedLaw]) -> dict[str, tuple[str, str]]:
    """Return title and explanation of each picture of `draw_laws`."""
    what = (
        "predictions of scores that a fit of the others had not seen, over what was measured: on the "
        "diagonal they came true; pale: the law fitted to all scores"
    )
    return {
        f"law-{_file(one)}": (
            f"{one.fit.law.name} on {one.stream}: {one.fit.law.formula}",
            f"{one.fit.law.source}; {what}",
        )
        for one in laws
    }


def _file(one: FittedLaw) -> str:
    return f"{one.fit.law.name.replace(' ', '-')}-{one.stream}"


def write_law_figures(laws: Sequence[FittedLaw], out: Path) -> list[str]:
    """Write a figure of each law to the new folder `out`, and return notes.

    Raises:
        UserError: the folder exists and is not empty.
        InfrastructureError: the disk is full or fails.
    """
    refuse_existing(out)
    pictures = {_file(one): draw_law(one) for one in laws}
    return [f"{out}: {len(pictures)} figures", *write_figures(pictures, out)]
