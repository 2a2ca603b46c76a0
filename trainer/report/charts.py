"""Line charts as inline SVG: direct labels instead of legends, no script, nothing to fetch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from trainer.report.labels import (
    Box,
    Label,
    at_places,
    beside_points,
    crowded,
    in_margin,
    key_below,
    margin_width,
    needs_key,
    numbered,
    text_width,
)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#555555")
"""Okabe and Ito's palette, distinct for all kinds of colour vision; its yellow is darkened to be read."""

DASHES = ("", "6 3", "2 2")
"""More lines than colours go through the colours again, dashed."""

POINTS = 500
"""Points that a line is thinned to: more than there are pixels."""

WIDTH = 480
"""Of a picture, in its own pixels: a phone shows it at two thirds."""

NumberFormat = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    number: int
    """Of the arm, which gives the colour."""
    xs: Sequence[float]
    ys: Sequence[float]
    faint: bool = False
    """Drawn thin and pale, without a label: the noise behind a smoothed line."""
    dots: bool = False
    marks: Sequence[tuple[float, str]] = ()
    """(x, what happened there)"""
    band: Sequence[tuple[float, float]] = ()
    """For each x the lowest and the highest y of what the line is the mean of."""
    joined: bool = True
    """Whether a line is drawn through the points."""

    @property
    def colour(self) -> str:
        """Of the arm."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def dash(self) -> str:
        """Of the arm."""
        return DASHES[self.number // len(COLOURS) % len(DASHES)]


@dataclass(frozen=True)
class Frame:
    """Where the data lies in the picture."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Return the pixel of an x value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the pixel of a y value."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def chart(
    lines: Sequence[Line],
    *,
    x_format: NumberFormat,
    y_format: NumberFormat,
    x_title: str = "tokens",
    zero: bool = False,
    at_end: bool = False,
    described: str = "",
    width: int = WIDTH,
    height: int = 300,
) -> str:
    """Return an SVG picture of `lines`; empty if there is nothing to draw.

    `zero` keeps the y axis down to (or up to) 0, with a line there; `at_end` writes labels beside the lines'
    ends, wherever they are, and not in the right margin; `described` is what screen readers say. Where names
    have no room there, numbers stand for them, and a key below makes the picture higher than `height`.
    """
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return ""
    named = [line for line in lines if line.label and not line.faint]
    texts = [line.label for line in named]
    keyed = bool(named) and not at_end and needs_key(texts, width, height - _ABOVE - _BELOW)
    if keyed:
        texts = [str(number) for number in range(1, len(named) + 1)]
    y_ticks = ticks(*_extent((y for line in lines for y in _heights(line)), zero))
    x_range = _extent((x for line in lines for x in line.xs), False)
    widest = [text_width(x_format(tick)) / 2 for tick in ticks(*x_range)]
    if not at_end:
        widest.append(margin_width(texts, height - _ABOVE - _BELOW))
    frame = Frame(
        left=14 + max(text_width(y_format(tick)) for tick in y_ticks),
        right=width - 5 - max(widest),
        top=_ABOVE,
        bottom=height - _BELOW,
        x_range=x_range,
        y_range=(y_ticks[0], y_ticks[-1]),
    )
    labels = [
        Label(text, line.label, line.colour, frame.x(line.xs[-1]), frame.y(line.ys[-1]))
        for text, line in zip(texts, named, strict=True)
    ]
    if at_end:
        written, keyed = _beside(labels, lines, frame, width)
    else:
        written = in_margin(labels, frame.right, frame.top, frame.bottom)
    key, more = key_below(labels, width, height) if keyed else ("", 0.0)
    parts = [
        f'<svg viewBox="0 0 {width} {height + more:.0f}" role="img" aria-label="{escape(described)}">',
        *_axes(frame, y_ticks, x_format, y_format, x_title, zero, width),
        *(_band(line, frame) for line in lines if line.band),
        *(part for line in lines for part in _marks(line, frame)),
        *(_path(line, frame) for line in sorted(lines, key=lambda line: not line.faint)),
        written,
        key,
        "</svg>",
    ]
    return "".join(parts)


_ABOVE, _BELOW = 10, 38
"""Pixels above a plot, and below it for the axis and its title."""


def _beside(labels: Sequence[Label], lines: Sequence[Line], frame: Frame, width: int) -> tuple[str, bool]:
    """Write labels beside the ends of lines; return that, and whether they are numbers for want of room."""
    within = Box(frame.left, 2, width - 2, frame.bottom)
    pale = [place for line in lines if line.faint for place in _places(line, frame)]
    single = [place for line in lines if not line.faint and not line.joined for place in _places(line, frame)]
    joined = [place for line in lines if not line.faint and line.joined for place in _places(line, frame)]
    places = beside_points(labels, [*single, *joined], pale, within)
    if not needs_key([label.text for label in labels], width, math.inf) and not crowded(places, single):
        return at_places(labels, places), False
    labels = numbered(labels)
    return at_places(labels, beside_points(labels, [*single, *joined], pale, within)), True


def _places(line: Line, frame: Frame) -> list[tuple[float, float]]:
    """Return where a line's points are in the picture, as many as are drawn."""
    return [(frame.x(x), frame.y(y)) for x, y in zip(*_thinned(line.xs, line.ys), strict=True)]


def bar(shares: Sequence[tuple[str, float, str]]) -> str:
    """Return an HTML bar cut into `shares`: (name, share of the whole, colour); narrow ones show no name."""
    parts = ""
    for name, share, colour in shares:
        per_cent = f"{100 * share:.3g} %"
        shown = f"{name} {per_cent}" if share > 0.2 else per_cent if share > 0.06 else ""
        parts += (
            f'<span style="flex:{share:.6f};background:{colour}" title="{escape(f"{name} {per_cent}")}">'
            f"{escape(shown)}</span>"
        )
    return f'<div class="bar">{parts}</div>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _extent(values: Iterable[float], zero: bool) -> tuple[float, float]:
    """Return the least and the greatest value, widened if they are the same."""
    found = [*values, 0.0] if zero else list(values)
    low, high = min(found), max(found)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-100):
        spread = abs(low) * 0.1 if abs(low) > 1e-100 else 1.0
        return low - (0 if zero and low == 0 else spread), high + spread
    return low, high


def _axes(
    frame: Frame,
    y_ticks: Sequence[float],
    x_format: NumberFormat,
    y_format: NumberFormat,
    x_title: str,
    zero: bool,
    width: int,
) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        kind = "zero" if zero and tick == 0 else "grid-line"
        parts.append(f'<path class="{kind}" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        parts.append(f'<text x="{frame.left - 6:.1f}" y="{y + 4:.1f}" class="end">{y_format(tick)}</text>')
    low, high = frame.x_range
    for tick in ticks(low, high):
        if low <= tick <= high + (high - low) * 1e-9:
            x = frame.x(tick)
            parts.append(f'<path class="tick" d="M{x:.1f} {frame.bottom:.1f}v4"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{frame.bottom + 17:.1f}" class="middle">{x_format(tick)}</text>'
            )
    half = text_width(x_title) / 2
    middle = max(half, min((frame.left + frame.right) / 2, width - half))
    parts.append(
        f'<text x="{middle:.1f}" y="{frame.bottom + 33:.1f}" class="middle title">{escape(x_title)}</text>'
    )
    return parts


def _path(line: Line, frame: Frame) -> str:
    places = _places(line, frame)
    drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    style = f'stroke="{line.colour}"' + (f' stroke-dasharray="{line.dash}"' if line.dash else "")
    kind = "faint" if line.faint else "line"
    if not line.joined:
        kind, radius = ("pale", 2.6) if line.faint else ("dot", 4.5)
        return "".join(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{line.colour}"/>'
            for x, y in places
        )
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{line.colour}"/>'
        for x, y in (places if line.dots else places[:1] if len(places) == 1 else [])
    )
    return f'<path class="{kind}" {style} d="M{drawn}"/>{dots}'


def _heights(line: Line) -> Iterable[float]:
    return [*line.ys, *(y for pair in line.band for y in pair)]


def _band(line: Line, frame: Frame) -> str:
    """Draw the area between the lowest and the highest values."""
    lows = [(x, low) for x, (low, _) in zip(line.xs, line.band, strict=True)]
    highs = [(x, high) for x, (_, high) in zip(line.xs, line.band, strict=True)]
    drawn = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in [*lows, *reversed(highs)])
    return f'<path class="band" fill="{line.colour}" d="M{drawn}Z"/>'


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most about `POINTS` points that keep the peaks: the lowest and highest of each bucket."""
    if len(xs) <= POINTS:
        return list(xs), list(ys)
    size = -(-2 * len(xs) // POINTS)
    kept = {0, len(xs) - 1}
    for start in range(0, len(xs), size):
        bucket = range(start, min(start + size, len(xs)))
        kept |= {min(bucket, key=lambda place: ys[place]), max(bucket, key=lambda place: ys[place])}
    return [xs[place] for place in sorted(kept)], [ys[place] for place in sorted(kept)]


def _marks(line: Line, frame: Frame) -> list[str]:
    """Draw a dashed vertical line and a triangle on the axis where something happened."""
    parts = []
    for value, what in line.marks:
        x, y = frame.x(value), frame.bottom
        parts.append(f'<path class="mark" stroke="{line.colour}" d="M{x:.1f} {frame.top}V{y:.1f}"/>')
        parts.append(
            f'<path fill="{line.colour}" d="M{x:.1f} {y - 8:.1f}l5 8h-10z">'
            f"<title>{escape(what)}</title></path>"
        )
    return parts
