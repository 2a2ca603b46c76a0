"""Find the files of inputs: files, folders of files, and directories that `datasets` saved."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from tokenization.errors import UserError
from tokenization.text.streams import PACKED, unpack

Kind = Literal["txt", "jsonl", "parquet", "arrow", "hub"]

_KINDS: dict[str, Kind] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""By the ending of a name, in any case."""

_IN_FOLDERS = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")

_READ = f"{' '.join(_IN_FOLDERS)} (plain, .gz or .zst)"

_SYSTEM = {"__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"}
"""Folders that programs create among their users' files; those that begin with a dot are not listed."""

_RUN = "recipe.resolved.yaml"
"""The file that marks the directory of a run."""

_SHARD = re.compile(r"(.+?)(?:\.bin|\.idx|\.json|\.prepared\.json|\.duplicates\.npz.*)(?:\.partial)?")

_REJECTS = ".rejects.jsonl"

_TOKENIZER = {"merges.txt", "vocab.txt"}

_FIRST_LINE_BYTES = 64 << 20

_NAMED = 5

_OTHERS = "file(s) of other kinds"

_HIDDEN = "hidden file(s) or folder(s)"

_OURS = "file(s) or folder(s) that rewarm wrote"

_TWICE = "file(s) named before"


@dataclass(frozen=True)
class Found:
    """The files of some inputs, in order, and what is left out of the same folders."""

    files: list[Path]
    left: dict[str, list[Path]]
    """Files and folders that are not read, by the reason."""

    @property
    def left_out(self) -> str | None:
        """A line that names what is left out, if anything is."""
        parts = []
        for why, paths in self.left.items():
            names = [shown(path.name) for path in paths[:_NAMED]] + ["…"] * (len(paths) > _NAMED)
            parts.append(f"{len(paths):,} {why}: {', '.join(names)}")
        return f"left out {'; '.join(parts)}" if parts else None


def find_files(inputs: Sequence[str | Path], text_field: str = "text", encoding: str = "utf-8") -> Found:
    """Return the files of all `inputs` in their order, each once; files of a folder are ordered by name.

    Links are followed; within an input each folder is read once, however many links lead to it. In a folder,
    hidden files, those of other kinds and those that rewarm wrote are left out. A `.json` is read if it
    holds JSON lines.

    Raises:
        UserError: an input is missing, is of an unknown kind, or a part of it cannot be read.
    """
    found = Found([], {})
    seen: set[tuple[int, int]] = set()
    try:
        for path in map(Path, inputs):
            read = 0
            if not path.is_dir():
                _refuse_unknown(path, text_field, encoding)
            for file, why in _walk(path, set(), text_field, encoding) if path.is_dir() else [(path, None)]:
                if why is None:
                    read += 1
                    why = _once(file, seen)
                if why is None:
                    found.files.append(file)
                else:
                    found.left.setdefault(why, []).append(file)
            if not read:
                note = f" ({found.left_out})" if found.left else ""
                raise UserError(f"has no {_READ} file{note}", file=shown(path))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=error.filename) from None
    return found


def kind(path: str | Path) -> tuple[Kind | None, bool]:
    """Return the kind of a file by its name (None if it cannot be read), and whether it is compressed."""
    name = os.path.basename(path).lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    found = _KINDS.get(os.path.splitext(name.removesuffix(packed))[1])
    return (None if packed and found in ("parquet", "arrow") else found), bool(packed)


def shown(path: str | Path) -> str:
    """Return a path as printable text, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _once(file: Path, seen: set[tuple[int, int]]) -> str | None:
    """Return why a file is left out; None if it can be read and was not named before.

    Raises:
        UserError: it does not exist, or is not a regular file.
    """
    if not file.is_file():
        if file.exists():
            raise UserError("is not a regular file", file=file, fix="save its content to disk first")
        fix = "restore it, or remove the link or the line of state.json that names it"
        raise UserError("does not exist", file=file, fix=fix)
    stat = file.stat()
    place = (stat.st_dev, stat.st_ino)
    if place in seen:
        return _TWICE
    seen.add(place)
    return None


def _refuse_unknown(path: Path, text_field: str, encoding: str) -> None:
    """Refuse a file that was named and cannot be read.

    Raises:
        UserError: its kind cannot be read, or it does not exist.
    """
    if not path.exists():
        if path.parts[:1] == ("hf:",):
            fix = "fetch it (`hf download --repo-type dataset`) and name its files"
            what, name = "is on the hub, which only `rewarm data prepare` streams", "/".join(path.parts[1:])
            raise UserError(what, file=f"hf://{name}", fix=fix)
        raise UserError("does not exist", file=path, fix="name a file or a directory of texts")
    if path.name.endswith(_REJECTS):
        raise UserError(
            "is a list of records that `data prepare` left out", file=path, fix="name the text itself"
        )
    if kind(path)[0] is None:
        raise UserError("is not of a known kind", file=path, fix=f"convert it to one of {_READ}")
    if _is_json(path) and path.is_file() and not _holds_json_lines(path, text_field, encoding):
        fix = "convert it; for a list, use `jq -c '.[]'`"
        raise UserError("is JSON, but not one JSON object per line", file=path, fix=fix)


def _walk(
    folder: Path, seen: set[tuple[int, int]], text_field: str, encoding: str
) -> Iterator[tuple[Path, str | None]]:
    """Yield every file below a folder with the reason why it is left out; None if it is read."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    if (folder / _RUN).is_file():
        yield folder, _OURS
        return
    saved = _saved(folder)
    if saved is not None:
        yield from ((file, None) for file in saved)
        return
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    ours = _ours(folder, entries)
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.name in _SYSTEM:
            yield path, _HIDDEN
        elif entry.name in ours:
            yield path, _OURS
        elif entry.is_dir():
            yield from _walk(path, seen, text_field, encoding)
        else:
            yield path, None if _is_text(path, text_field, encoding) else _OTHERS


def _is_text(path: Path, text_field: str, encoding: str) -> bool:
    """Return whether documents are read from this file of a folder."""
    if kind(path)[0] in (None, "arrow"):
        return False
    return not (_is_json(path) and path.is_file()) or _holds_json_lines(path, text_field, encoding)


def _ours(folder: Path, entries: Sequence[os.DirEntry[str]]) -> set[str]:
    """Return the names of the files in a folder that `rewarm` wrote: shards, rejects, lists of studies."""
    names = {entry.name for entry in entries}
    found = {name for name in names if name.endswith((_REJECTS, f"{_REJECTS}.partial"))}
    endings = (".idx", ".idx.partial", ".prepared.json")
    for name in names:
        match = _SHARD.fullmatch(name)
        if match and any(match[1] + ending in names for ending in endings):
            found.add(name)
    if "tokenizer_config.json" in names:
        found |= names & _TOKENIZER
    if "arms.txt" in names and any((folder / entry.name / _RUN).is_file() for entry in entries):
        found.add("arms.txt")
    return found


def _is_json(path: Path) -> bool:
    name = path.name.lower()
    return any(name.endswith(f".json{packed}") for packed in ("", *PACKED))


def _holds_json_lines(path: Path, text_field: str, encoding: str) -> bool:
    """Return whether a `.json` file begins with JSON lines: an object that has the text, or two objects."""
    with unpack(str(path), encoding) as file:
        lines = (line for line in iter(lambda: file.readline(_FIRST_LINE_BYTES), b"") if line.strip())
        objects = []
        for line in islice(lines, 2):
            try:
                objects.append(json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")))
            except (ValueError, RecursionError):
                break
    if not objects or not isinstance(objects[0], dict):
        return False
    return text_field in objects[0] or (len(objects) == 2 and isinstance(objects[1], dict))


def _saved(folder: Path) -> list[Path] | None:
    """Return the files of a directory that `datasets` saved, in order; None for any other folder.

    Raises:
        UserError: it holds several splits, or its list of files is damaged.
    """
    splits, state = folder / "dataset_dict.json", folder / "state.json"
    try:
        if splits.is_file():
            first = json.loads(splits.read_bytes())["splits"][0]
            raise UserError("holds several splits", file=folder, fix=f"name one split: {folder / first}")
        if not state.is_file():
            return None
        return [folder / data["filename"] for data in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, LookupError, TypeError):
        if not splits.is_file() and not any(folder.glob("*.arrow")):
            return None  # a state.json of another program
        file = splits if splits.is_file() else state
        raise UserError("was not saved by `datasets`", file=file, fix="save the dataset again") from None
