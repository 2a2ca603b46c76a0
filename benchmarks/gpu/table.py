"""The rows that the steps find, kept twice as they come: results.jsonl for programs, table.md for people."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.rows import Row

MARKS = {True: "ok", False: "NOT OK", None: "–"}


class Table:
    """What was found so far."""

    def __init__(self, out: Path, commit: str, cpu: bool) -> None:
        """Begin an empty table in the directory `out`."""
        self.out, self.cpu = out, cpu
        self.titles: dict[str, str] = {}
        self.rows: list[Row] = []
        self.begun = datetime.datetime.now(datetime.UTC)
        self.commit = commit
        self._write()

    def title(self, step: str, title: str) -> None:
        """Begin the part of a step."""
        self.titles[step] = title
        print(f"\n{title}", flush=True)
        self._write()

    def add(self, row: Row) -> str:
        """Keep a row on the disk; its line for the terminal."""
        self.rows.append(row)
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._write()
        value = f"{shown(row.value)} {row.unit}".strip()
        return f"{MARKS[row.ok]:>6}  {row.name:<52} {value:>18}  {row.note}".rstrip()

    def failed(self, step: str, name: str) -> bool:
        """Return whether a row says that this does not work."""
        return any((row.step, row.name, row.ok) == (step, name, False) for row in self.rows)

    @property
    def right(self) -> bool:
        """Whether all that was tried works, and something was."""
        return bool(self.rows) and all(row.ok is not False for row in self.rows)

    def text(self) -> str:
        """Return the whole table in Markdown."""
        ground = {row.name: row for row in self.rows if row.step == "ground"}
        card = ground["card"].value if "card" in ground else "no card" if self.cpu else "unknown card"
        when = f"{self.begun:%Y-%m-%d %H:%M} UTC"
        facts = [f"**{card}**, commit {self.commit}, {when}, Python {platform.python_version()}"]
        if "versions" in ground:
            facts.append(str(ground["versions"].value))
        lines = ["; ".join(facts), "", "| | what | value | note |", "|---|---|---:|---|"]
        for step, title in self.titles.items():
            lines.append(f"| | **{title}** | | |")
            for row in self.rows:
                if row.step == step:
                    value = f"{shown(row.value)} {row.unit}".strip()
                    cells = (MARKS[row.ok], row.name, value, row.note)
                    lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def _write(self) -> None:
        """Replace table.md in one move, so that no moment leaves half of it."""
        part = self.out / "table.md.part"
        part.write_text(self.text(), encoding="utf-8")
        part.replace(self.out / "table.md")


def shown(value: float | str | None) -> str:
    """Return a number with as many digits as a reader needs."""
    if value is None:
        return ""
    if isinstance(value, (str, bool)):
        return str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}" if size >= 1e-3 else f"{value:.2e}"
