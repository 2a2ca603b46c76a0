"""The plain-text table of all commands."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Format columns as wide as they need, below a head and a rule.

    `align` has a `<` (left) or `>` (right) for each column; columns beyond its end are on the left.
    """
    lines = [head, *rows]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    sides = align.ljust(len(head), "<")
    return "\n".join(
        "  ".join(_padded(*cell) for cell in zip(line, widths, sides, strict=True)).rstrip() for line in lines
    )


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padded(text: str, width: int, side: str) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if side == ">" else text + blanks
