"""Which files some inputs are: files, folders of them, and directories that `datasets` saved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenization.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst", ".parquet")


_NAMED = 5


@dataclass(frozen=True)
class Found:
    """The files of some inputs, in order, and what lies beside them in the same folders."""

    files: list[Path]
    others: list[Path]
    """Files of other kinds, which nothing is read from."""

    @property
    def left_out(self) -> str | None:
        """A line that names the others, if there are any."""
        if not self.others:
            return None
        names = [shown(path.name) for path in self.others[:_NAMED]] + ["…"] * (len(self.others) > _NAMED)
        return f"left out {len(self.others):,} file(s) of other kinds: {', '.join(names)}"


def find_files(inputs: Sequence[str | Path]) -> Found:
    """The files of all `inputs`, in the order given, folders in the order of their names.

    Links are followed; within an input each folder is read once, however many lead to it.

    Raises:
        UserError: an input is missing, is of an unknown kind, or a part of it cannot be read.
    """
    found = Found([], [])
    try:
        for path in map(Path, inputs):
            before = len(found.files)
            for file, wanted in _walk(path, set()) if path.is_dir() else [(path, _is_known(path))]:
                (found.files if wanted else found.others).append(file)
            if len(found.files) == before:
                raise UserError(f"has no {' '.join(SUFFIXES)} file", file=path)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=error.filename) from None
    for file in found.files:
        if not file.is_file():
            if file.exists():
                raise UserError("is no plain file", file=file, fix="write what it gives to the disk first")
            fix = "restore it, or remove the link or the line of state.json that names it"
            raise UserError("is not there", file=file, fix=fix)
    return found


def shown(path: str | Path) -> str:
    """A path for a reader, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_known(path: Path) -> bool:
    """Whether a file that was named is of a kind that can be read.

    Raises:
        UserError: it is not, or is not there.
    """
    if not path.exists():
        raise UserError("is not there", file=path, fix="name a file or a directory of texts")
    if not path.name.endswith((*SUFFIXES, ".arrow")):
        raise UserError("is of no known kind", file=path, fix=f"convert it to one of {' '.join(SUFFIXES)}")
    return True


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, bool]]:
    """Every file below a folder, and whether documents are read from it."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    saved = _saved(folder)
    if saved is not None:
        yield from ((file, True) for file in saved)
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        else:
            yield Path(entry.path), entry.name.endswith(SUFFIXES)


def _saved(folder: Path) -> list[Path] | None:
    """The files of a directory that `datasets` saved, in their order; None for any other folder.

    Raises:
        UserError: it holds several splits, or its list of files is damaged.
    """
    splits, state = folder / "dataset_dict.json", folder / "state.json"
    try:
        if splits.is_file():
            first = json.loads(splits.read_bytes())["splits"][0]
            raise UserError("holds several splits", file=folder, fix=f"name one: {folder / first}")
        if not state.is_file():
            return None
        return [folder / data["filename"] for data in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, LookupError, TypeError):
        if not splits.is_file() and not any(folder.glob("*.arrow")):
            return None  # a state.json of some other program
        file = splits if splits.is_file() else state
        raise UserError("is not what `datasets` saves", file=file, fix="save the dataset again") from None
