"""The names of a chart's lines: at their ends, or numbers there and the names in a key below."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

GAP = 15.0
"""Pixels from one line of text to the next."""

WIDEST = 0.38
"""Share of the picture's width that a name at the end of a line may take."""


@dataclass(frozen=True)
class Label:
    """What is written for a line, in its colour, and where in the picture the line ends."""

    text: str
    """Its name, or a number that the key explains."""
    name: str
    colour: str
    x: float
    y: float


def numbered(labels: Sequence[Label]) -> list[Label]:
    """Return the labels with their numbers, from 1 on, in place of their names."""
    return [replace(label, text=str(number)) for number, label in enumerate(labels, 1)]


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture that something takes."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Tell whether two rectangles have a point in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def needs_key(names: Sequence[str], width: float, height: float) -> bool:
    """Tell whether names are too long, or too many, to stand at the ends of lines in a plot."""
    return len(names) * GAP > height or any(text_width(name) > WIDEST * width for name in names)


def margin_width(texts: Sequence[str], height: float) -> float:
    """Return how many pixels `in_margin` takes on the right."""
    return 3 + _columns(len(texts), height) * (4 + max(map(text_width, texts))) if texts else 0.0


def in_margin(labels: Sequence[Label], left: float, top: float, bottom: float) -> str:
    """Write labels right of a plot, each as high as its line's end, moved apart where ends are close.

    Where they do not fit below each other, neighbours stand in columns beside each other.
    """
    shown = sorted(labels, key=lambda label: label.y)
    columns = _columns(len(labels), bottom - top)
    ys = spread([label.y for label in shown], GAP / columns, top + 4, bottom)
    step = 4 + max((text_width(label.text) for label in labels), default=0.0)
    return "".join(
        _written(label, left + 7 + place % columns * step, y + 4)
        for place, (label, y) in enumerate(zip(shown, ys, strict=True))
    )


def _columns(count: int, height: float) -> int:
    return max(1, math.ceil(count * GAP / height))


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


_AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
"""Where a label may stand from its point, the best place first: [right, down]."""

Point = tuple[float, float]


def beside_points(
    labels: Sequence[Label], dots: Sequence[Point], pale: Sequence[Point], within: Box
) -> list[Box]:
    """Return a place near its point for each label, as clear as possible of the other labels and of dots.

    The worst place covers another label; then come those over a dot, farther away, and over a pale dot.
    """
    strong, weak = ([Box(x - 4, y - 4, x + 4, y + 4) for x, y in points] for points in (dots, pale))
    placed: list[Box] = []
    for label in labels:
        width = text_width(label.text)
        costs = {
            place: 100 * sum(map(place.meets, placed))
            + 4 * sum(map(place.meets, strong))
            + 2 * far
            + sum(map(place.meets, weak))
            for far in (1, 2)
            for right, down in _AROUND
            if _holds(within, place := _near(label, width, right, down, far))
        }
        last_resort = _pushed(_near(label, width, 1, 0, 1), within)
        placed.append(min(costs, key=costs.__getitem__, default=last_resort))
    return placed


def _near(label: Label, width: float, right: int, down: int, far: int) -> Box:
    """Return the place in a direction from a label's point, beside it or one place farther away."""
    middle = label.x + right * (7 * far + width / 2)
    height = label.y + down * 14 * far
    return Box(middle - width / 2, height - 7, middle + width / 2, height + 6)


def _holds(within: Box, place: Box) -> bool:
    across = within.left <= place.left and place.right <= within.right
    return across and within.top <= place.top and place.bottom <= within.bottom


def _pushed(place: Box, within: Box) -> Box:
    """Move a place to the left, so that it does not leave the picture on the right."""
    beyond = max(0.0, place.right - within.right)
    return Box(place.left - beyond, place.top, place.right - beyond, place.bottom)


def crowded(places: Sequence[Box], points: Sequence[Point]) -> bool:
    """Tell whether any of the places overlaps another one, or covers one of the points."""
    over = any(one.meets(other) for number, one in enumerate(places) for other in places[:number])
    return over or any(place.meets(Box(x - 4, y - 4, x + 4, y + 4)) for x, y in points for place in places)


def at_places(labels: Sequence[Label], places: Sequence[Box]) -> str:
    """Write labels at the places that `beside_points` found."""
    return "".join(
        _written(label, place.left, place.bottom - 2) for label, place in zip(labels, places, strict=True)
    )


def key_below(labels: Sequence[Label], width: float, top: float) -> tuple[str, float]:
    """Write from `top` on which number stands for which name; return that, and how many pixels it is high."""
    names = [f"{number} {label.name}" for number, label in enumerate(labels, 1)]
    room = width - 2 * _EDGE
    columns = max(1, int(room // (14 + max(map(text_width, names)))))
    parts, line = [], 0
    for place, (name, label) in enumerate(zip(names, labels, strict=True)):
        line += place > 0 and place % columns == 0
        for number, piece in enumerate(_pieces(name, room)):
            line += number > 0
            x = _EDGE + place % columns * room / columns
            parts.append(_written(replace(label, text=piece, name=piece), x, top + 12 + line * GAP))
    return "".join(parts), GAP * (line + 1) + 4


_EDGE = 8.0
"""Pixels left free beside a key."""


def _pieces(text: str, room: float) -> list[str]:
    """Break a text into pieces that fit into `room`, behind a mark where there is one."""
    pieces = [""]
    for letter in text:
        if pieces[-1] and text_width(pieces[-1] + letter) > room:
            cut = max(map(pieces[-1].rfind, " -_/.,=")) + 1
            whole, rest = (pieces[-1][:cut], pieces[-1][cut:]) if cut > 0 else (pieces[-1], "")
            pieces[-1:] = [whole, rest]
        pieces[-1] += letter
    return pieces


def _written(label: Label, x: float, y: float) -> str:
    full = f"<title>{escape(label.name)}</title>" if label.name != label.text else ""
    style = f'class="name" style="fill:{label.colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(label.text)}{full}</text>'


_EMS = (
    (0.42, " .,:;'`|!ijlI-/\\"),
    (0.55, 'frt()[]{}"*_^Jsc'),
    (0.85, "ABCDEFGHKLNOPQRSTUVXYZ&+<>=~#$"),
    (1.15, "mwMW@%"),
)
"""Widths of letters in the widest bold font that a browser may take (DejaVu Sans), in font sizes."""

_WIDTHS = {letter: width for width, letters in _EMS for letter in letters}

_SIZE = 13.0
"""Pixels of the font: 12, and 14 on a phone; with 13 the widths above hold there, too."""


def text_width(text: str) -> float:
    """Return the most pixels that a text takes in a chart, in any font and in bold."""
    return _SIZE * sum(
        _WIDTHS.get(letter, 0.75) if letter.isascii() else 0.0 if unicodedata.combining(letter) else 1.25
        for letter in text
    )
