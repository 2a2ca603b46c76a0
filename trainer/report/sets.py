"""Validation sets by name, below the roles that they belong to: `upstream/en-wiki`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from tokenization.tables import text_table
from tokenization.tokenizer.piece_bytes import BYTE_CLASSES
from trainer.metrics import names
from trainer.report.runs import RunHistory
from trainer.report.sheet import html_sheet

SET_HEADINGS = ("arm", "set", "bits per byte", "forgetting")


def streams_of(arm: RunHistory) -> list[str]:
    """Return the arm's roles and named sets in the order of a tree."""
    found = {stream for record in arm.records for stream in map(names.stream_of, record) if stream}
    return sorted(found, key=lambda stream: (not stream.startswith("upstream"), stream))


def set_rows(arms: Sequence[RunHistory]) -> Iterator[tuple[str, ...]]:
    """Yield a row under `SET_HEADINGS` for each role, set and class of bytes of each arm."""
    for arm in arms:
        for stream in streams_of(arm):
            score = arm.series(names.stream_bits_per_byte(stream))
            lost = arm.series(names.stream_forgetting(stream))
            if score:
                change = f"{score.start:.4f} → {score.end:.4f}"
                forgotten = f"{lost.end:+.4f}" if lost and not arm.from_scratch else "–"
                yield arm.name, stream, change, forgotten
            for kind in BYTE_CLASSES:
                of_class = arm.series(names.stream_class_bits_per_byte(stream, kind))
                if of_class:
                    yield arm.name, f"{stream}: {kind}", f"{of_class.start:.4f} → {of_class.end:.4f}", "–"


def sets_text(arms: Sequence[RunHistory]) -> str:
    """Return the table of named sets as plain text; empty without any."""
    rows = [row for row in set_rows(arms) if "/" in row[1]]
    return text_table(SET_HEADINGS, rows) if rows else ""


def sets_section(arms: Sequence[RunHistory]) -> str:
    """Return the table of roles, sets and classes as HTML; empty without scores."""
    rows = list(set_rows(arms))
    if not rows:
        return ""
    shown = [(arm, _indented(stream), *numbers) for arm, stream, *numbers in rows]
    note = (
        "A role's score is the weighted mean of its sets, or that of the text that the recipe names for it. "
        "The nats of a token are divided among the classes of its bytes; the ends of documents are in none."
    )
    table = html_sheet(SET_HEADINGS, shown, texts=2)
    return f"<section><h2>Validation sets</h2><p class='note'>{note}</p>{table}</section>"


def _indented(stream: str) -> str:
    stream, _, kind = stream.partition(": ")
    role, slash, name = stream.partition("/")
    shown = f"&emsp;{escape(name)}" if slash else f"<b>{escape(role)}</b>"
    return f"{'&emsp;' * (1 + bool(slash))}<i>{escape(kind)}</i>" if kind else shown
