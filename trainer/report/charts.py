"""Line charts as inline SVG: direct labels instead of legends, no script, nothing to fetch."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#555555")
"""Okabe and Ito's palette, distinct for all kinds of colour vision; its yellow is darkened to be read."""

DASHES = ("", "6 3", "2 2")
"""More lines than colours go through the colours again, dashed."""

POINTS = 500
"""Points that a line is thinned to: more than there are pixels."""

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
    width: int = 540,
    height: int = 300,
) -> str:
    """Return an SVG picture of `lines`; empty if there is nothing to draw.

    `zero` keeps the y axis down to (or up to) 0, with a line there; `at_end` writes labels above the lines'
    ends, wherever they are, and not in the right margin; `described` is what screen readers say.
    """
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return ""
    labelled = [line for line in lines if line.label and not line.faint]
    y_ticks = ticks(*_extent((y for line in lines for y in _heights(line)), zero))
    x_range = _extent((x for line in lines for x in line.xs), False)
    widest = [_text_width(x_format(tick)) / 2 for tick in ticks(*x_range)]
    if not at_end:
        widest += [7 + _text_width(_short(line.label)) for line in labelled]
    room = 5 + max(widest)
    frame = Frame(
        left=14 + max(_text_width(y_format(tick)) for tick in y_ticks),
        right=width - room,
        top=10,
        bottom=height - 38,
        x_range=x_range,
        y_range=(y_ticks[0], y_ticks[-1]),
    )
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(described)}">',
        *_axes(frame, y_ticks, x_format, y_format, x_title, zero),
        *(_band(line, frame) for line in lines if line.band),
        *(part for line in lines for part in _marks(line, frame)),
        *(_path(line, frame) for line in sorted(lines, key=lambda line: not line.faint)),
        *_labels(labelled, frame, at_end),
        "</svg>",
    ]
    return "".join(parts)


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
    middle = (frame.left + frame.right) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{frame.bottom + 33:.1f}" class="middle title">{escape(x_title)}</text>'
    )
    return parts


def _path(line: Line, frame: Frame) -> str:
    xs, ys = _thinned(line.xs, line.ys)
    places = [(frame.x(x), frame.y(y)) for x, y in zip(xs, ys, strict=True)]
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


def _labels(lines: Sequence[Line], frame: Frame, at_end: bool) -> list[str]:
    """Draw each line's name at its end, moved apart where ends are close."""
    raised = 12 if at_end else 0
    wanted = sorted((frame.y(line.ys[-1]) - raised, number) for number, line in enumerate(lines))
    ys = spread([y for y, _ in wanted], 15, frame.top + 4, frame.bottom)
    parts = []
    for y, (_, number) in zip(ys, wanted, strict=True):
        line = lines[number]
        widest = frame.right - _text_width(_short(line.label))
        x = min(frame.x(line.xs[-1]), widest) if at_end else frame.right + 7
        parts.append(
            f'<text x="{x:.1f}" y="{y + 4:.1f}" class="name" style="fill:{line.colour}">'
            f"{escape(_short(line.label))}<title>{escape(line.label)}</title></text>"
        )
    return parts


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move rising positions as little as needed to be `gap` apart and, if they fit, in [low, high]."""
    placed: list[float] = []
    for place in wanted:
        placed.append(max(place, low, placed[-1] + gap if placed else low))
    limit = high
    for number in range(len(placed) - 1, -1, -1):
        placed[number] = min(placed[number], limit)
        limit = placed[number] - gap
    return placed


def _short(label: str, most: int = 18) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


_EMS = (
    (0.42, " .,:;'`|!ijlI-/\\"),
    (0.55, 'frt()[]{}"*_^Jsc'),
    (0.85, "ABCDEFGHKLNOPQRSTUVXYZ&+<>=~#$"),
    (1.15, "mwMW@%"),
)
"""Widths of letters in the widest bold font that a browser may take (DejaVu Sans), in font sizes."""

_WIDTHS = {letter: width for width, letters in _EMS for letter in letters}


def _text_width(text: str) -> float:
    """The most pixels that a text takes at the charts' 12 px, in any font and in bold."""
    return 12 * sum(
        _WIDTHS.get(letter, 0.75) if letter.isascii() else 0.0 if unicodedata.combining(letter) else 1.25
        for letter in text
    )
