"""A picture of a planned run: its learning rate, and below it the share of each source."""

from __future__ import annotations

from pathlib import Path

from tokenization.errors import UserError
from trainer.metrics.progress import short
from trainer.mixer.simulate import target_shares
from trainer.plan.make import Plan
from trainer.report.charts import Line, chart
from trainer.report.document import svg_document
from trainer.report.figures import rate

_WIDTH = 720


def write_picture(plan: Plan, path: Path) -> None:
    """Write the picture as an SVG file.

    Raises:
        UserError: the file's name has another ending, or it cannot be written.
    """
    if path.suffix != ".svg":
        raise UserError("does not end in .svg", field="--plot", value=str(path), fix="name a .svg file")
    try:
        path.write_text(draw_plan(plan), encoding="utf-8")
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(
            what, field="--plot", value=str(path), fix="name a file in a folder that exists"
        ) from error


def draw_plan(plan: Plan) -> str:
    """Return the learning rate and the mixture over the tokens of the run as one SVG document."""
    rows = plan.decision.lr_at()
    rates = Line("LR", 0, [row["tokens"] for row in rows], [row["lr"] for row in rows])
    drawn = [
        chart([rates], x_format=short, y_format=rate, zero=True, width=_WIDTH, described="learning rate"),
        chart(
            _mixture(plan),
            x_format=short,
            y_format="{:.0%}".format,
            zero=True,
            width=_WIDTH,
            described="share of each source",
        ),
    ]
    return svg_document(drawn)


def _mixture(plan: Plan) -> list[Line]:
    """The share of each source in each stretch of the run, as steps."""
    mixture = plan.mixture
    xs: list[float] = []
    ys: dict[str, list[float]] = {name: [] for name in mixture.names}
    for phase, samples in enumerate(mixture.phase_samples):
        starts = [span.start for span in mixture.spans[phase] if span.start < samples]
        for start, stop in zip(starts, [*starts[1:], samples], strict=True):
            xs += [mixture.token_of(phase, start), mixture.token_of(phase, stop)]
            for name, share in target_shares(mixture, phase, start, stop).items():
                ys[name] += [float(share)] * 2
    return [Line(name, number, xs, ys[name]) for number, name in enumerate(mixture.names)]
