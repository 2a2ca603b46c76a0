"""A table of the page whose first columns are texts and whose others are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_sheet(headings: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """Return a table; of each row the first cell is a plain text, and `texts` - 1 cells after it are HTML."""
    head = "".join(
        f"<th{' class=n' if column >= texts else ''}>{name}</th>" for column, name in enumerate(headings)
    )
    body = "".join(
        f"<tr><th scope='row'>{escape(first)}</th>"
        + "".join(f"<td>{cell}</td>" for cell in others[: texts - 1])
        + "".join(f"<td class='n'>{cell}</td>" for cell in others[texts - 1 :])
        + "</tr>"
        for first, *others in rows
    )
    return f"<div class='sheet'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
