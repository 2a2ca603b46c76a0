"""Records: files of one JSON object a line, which grow at their end; torn lines are passed over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

_Made = TypeVar("_Made")

Say = Callable[[str], None]
"""Takes a line that the user must read."""

_SHOWN = 5
"""Damaged lines that are named one by one."""


def read_json_lines(path: Path, make: Callable[[Mapping[str, Any]], _Made], say: Say) -> list[_Made]:
    """Read every whole record of a file, each as `make` returns it; say which lines were passed over.

    A line is damaged if it is not a JSON object, or if `make` raises for it. What follows the last newline
    is cut short, or is still being written.

    Raises:
        OSError: the file cannot be read.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    found, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            tree = json.loads(line)
            if not isinstance(tree, dict):
                raise TypeError
            found.append(make(tree))
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged.append(number)
    if damaged:
        named = ", ".join(map(str, damaged[:_SHOWN])) + (", …" if len(damaged) > _SHOWN else "")
        say(f"{path}: passed over {len(damaged)} damaged line(s) of {len(lines)}: {named}")
    if torn:
        say(f"{path}: passed over its last line, which is cut short")
    return found


def append_record(path: Path, record: Mapping[str, Any], say: Say) -> None:
    """Append a record, which survives a power cut from here on; a torn last line is removed before.

    Raises:
        OSError: the disk is full or fails.
    """
    remove_torn_line(path, say)
    with path.open("ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def remove_torn_line(path: Path, say: Say) -> None:
    """Remove what follows the last newline, and say what it was: the next record must begin a line.

    Raises:
        OSError: the disk is full or fails.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        file.truncate(whole)
    start = content[whole : whole + 60].decode(errors="replace")
    say(f"{path}: removed its last line, which a kill or a power cut had cut short: {start!r}…")
