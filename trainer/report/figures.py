"""The report's pictures: which metrics are drawn, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from trainer.metrics import names
from trainer.metrics.progress import short
from trainer.report.charts import Line, NumberFormat, bar, chart
from trainer.report.runs import RunHistory, alike

SMOOTHING = 0.02
"""The smoothed training loss is a mean over this share of the run."""

MOST_NOISE = 3
"""The steps' own losses are drawn behind the means of up to this many arms; more would hide each other."""

NEW_COLOURS = ("#3f4a5a", "#64748b", "#8a97a8")

REPLAY_COLOURS = ("#6d4fb3", "#8f75cc", "#ad9adf")
"""Sources are drawn in other colours than arms."""


@dataclass(frozen=True)
class Figure:
    """A metric over tokens, all arms in one picture."""

    metric: str
    title: str
    what: str
    y_format: NumberFormat
    zero: bool = False
    dots: bool = False
    smooth: bool = False


def rate(value: float) -> str:
    """Format a learning rate as recipes do: 3e-4."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


TWO = "{:.2f}".format

FIGURES = (
    Figure(
        names.UPSTREAM, "Upstream", "held-out text of the old distribution, bits per byte", TWO, dots=True
    ),
    Figure(
        names.DOWNSTREAM,
        "Downstream",
        "held-out text of the new distribution, bits per byte",
        TWO,
        dots=True,
    ),
    Figure(
        names.FORGETTING,
        "Forgetting",
        "upstream bits per byte above the base's",
        "{:+.2f}".format,
        True,
        True,
    ),
    Figure(names.LOSS, "Training loss", "nats per token; bold: running mean", "{:.1f}".format, smooth=True),
    Figure(names.LR, "Learning rate", "as used in each step", rate, zero=True),
    Figure(
        names.GRAD_NORM,
        "Gradient norm",
        "before clipping; bold: running mean",
        "{:.2g}".format,
        smooth=True,
    ),
    Figure(
        names.TOKENS_PER_S,
        "Throughput",
        "tokens per second; bold: running mean",
        short,
        zero=True,
        smooth=True,
    ),
)


def figures(arms: Sequence[RunHistory]) -> str:
    """Return all figures for which there is data.

    Runs from random weights have pictures of their own: their first losses would flatten all others.
    """
    scratch = [arm for arm in arms if arm.from_scratch]
    continued = [arm for arm in arms if not arm.from_scratch]
    if not scratch or not continued:
        return _sections("Curves", arms)
    return _sections("Curves", continued) + _sections("Curves of what began with random weights", scratch)


def _sections(title: str, arms: Sequence[RunHistory]) -> str:
    """Pictures of `arms`: those whose scores cannot be compared are not in one picture."""
    groups = alike(arms)
    if len(groups) == 1:
        return _section(title, arms)
    return "".join(_section(f"{title}: {', '.join(arm.name for arm in group)}", group) for group in groups)


def _section(title: str, arms: Sequence[RunHistory]) -> str:
    drawn = [_over_tokens(figure, arms) for figure in FIGURES]
    drawn.insert(3, _trade([arm for arm in arms if not arm.from_scratch]))
    marked = any(arm.restored_at for arm in arms)
    note = "<p class='note'>▲ restored from a checkpoint at this token.</p>" if marked else ""
    return f"<section><h2>{escape(title)}</h2>{note}<div class='grid'>{''.join(drawn)}</div></section>"


def _over_tokens(figure: Figure, arms: Sequence[RunHistory]) -> str:
    lines = []
    for arm in arms:
        series = arm.series(figure.metric)
        if not series or (figure.metric == names.FORGETTING and arm.from_scratch):
            continue
        marks = [(tokens, f"{arm.name}: restored at step {step}") for step, tokens in arm.restored_at]
        values: Sequence[float] = series.values
        if figure.smooth:
            if len(arms) <= MOST_NOISE:
                lines.append(Line(arm.name, arm.number, series.tokens, values, faint=True))
            values = smoothed(values, max(1, round(SMOOTHING * len(values))))
        lines.append(Line(arm.name, arm.number, series.tokens, values, dots=figure.dots, marks=marks))
    picture = chart(
        lines,
        x_format=short,
        y_format=figure.y_format,
        zero=figure.zero,
        described=f"{figure.title} over tokens",
    )
    return _figure(figure.title, figure.what, picture)


def _trade(arms: Sequence[RunHistory]) -> str:
    """Return a chart of each arm's path from the base through the plane of both losses."""
    lines = []
    for arm in arms:
        upstream, downstream = arm.series(names.UPSTREAM), arm.series(names.DOWNSTREAM)
        across = dict(zip(downstream.tokens, downstream.values, strict=True))
        both = [
            (across[tokens], value)
            for tokens, value in zip(upstream.tokens, upstream.values, strict=True)
            if tokens in across
        ]
        if both:
            xs, ys = zip(*both, strict=True)
            lines.append(Line(arm.name, arm.number, xs, ys, dots=True))
    picture = chart(
        lines,
        x_format="{:.2f}".format,
        y_format="{:.2f}".format,
        x_title="downstream, bits per byte",
        at_end=True,
        described="Upstream against downstream",
    )
    what = "upstream over downstream bits per byte, from the base to the named end: down and left is better"
    return _figure("The trade", what, picture)


def _figure(title: str, what: str, picture: str) -> str:
    if not picture:
        return ""
    return f"<figure><figcaption><b>{escape(title)}</b>{escape(what)}</figcaption>{picture}</figure>"


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return means over the last `window` values (fewer at the start), without later values."""
    means, total = [], 0.0
    for place, value in enumerate(values):
        total += value
        if place >= window:
            total -= values[place - window]
        means.append(total / min(place + 1, window))
    return means


# --------------------------------------------------------------------------------------------- mixtures


@dataclass(frozen=True)
class SourceUse:
    """What a source gave to a phase."""

    source: str
    role: str
    tokens: int
    share: float


def phase_shares(arm: RunHistory) -> list[tuple[str, list[SourceUse]]]:
    """Return a bar per started phase: the tokens that came from each source, as the run counted them."""
    if arm.recipe is None:
        return []
    found = []
    before = dict.fromkeys(arm.recipe.sources, 0)
    for phase, end in zip(arm.recipe.phases, arm.phase_ends(), strict=False):
        within = [
            record
            for record in arm.records
            if record["tokens"] <= end and any(names.source_tokens(name) in record for name in before)
        ]
        if not within:
            break
        now = {name: int(within[-1].get(names.source_tokens(name), 0)) for name in before}
        used = {name: now[name] - before[name] for name in before}
        total = sum(used.values())
        if total == 0:
            break
        shares = [
            SourceUse(name, arm.recipe.sources[name].role, tokens, tokens / total)
            for name, tokens in used.items()
            if tokens
        ]
        found.append((phase.name, sorted(shares, key=lambda share: share.role)))
        before = now
    return found


def mixtures(arms: Sequence[RunHistory]) -> str:
    """Return a bar per arm and phase; empty if nothing was counted."""
    rows = "".join(
        f"<b>{escape(arm.name)}</b><span>{escape(phase)}</span>{_bar(shares)}"
        for arm in arms
        for phase, shares in phase_shares(arm)
    )
    if not rows:
        return ""
    return (
        "<section><h2>Mixtures</h2><p class='note'>Tokens that each source gave to each phase: new text in"
        " grey, replayed text in violet.</p>"
        f"<div class='sheet'><div class='mixture'>{rows}</div></div></section>"
    )


def _bar(shares: Sequence[SourceUse]) -> str:
    """Sort new sources first, then replay."""
    cut = []
    for role, colours in (("new", NEW_COLOURS), ("replay", REPLAY_COLOURS)):
        of_role = [share for share in shares if share.role == role]
        cut += [
            (
                f"{share.source} {short(share.tokens)} ·",
                share.share,
                colours[place % 3],
            )
            for place, share in enumerate(of_role)
        ]
    return bar(cut)
