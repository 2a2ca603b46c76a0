"""Files that a power cut cannot halve: the one atomic writer, the one sync, the one checksum."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import xxhash

from tokenization.errors import InfrastructureError, UserError

BLOCK = 1 << 23
"""Bytes that are read and hashed at once."""

MADE_BY_US = ("*.json", "*.model", "*.safetensors", "*.jinja", "merges.txt", "README.md")
"""Names of the files that a tokenizer's or a model's directory may consist of."""


def with_ending(prefix: Path, ending: str) -> Path:
    """The path of the file that belongs to `prefix` and has that ending."""
    return prefix.with_name(prefix.name + ending)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file that holds either what it held before or all of `text`, whatever happens.

    Raises:
        OSError: the disk is full or fails.
    """
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the content of a file, or new and removed names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not need this answers so
            raise
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """The xxh3-128 of a file, in constant memory."""
    digest = xxhash.xxh3_128()
    block = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the failure of a disk into an error that says so and names `path`."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(f"{path}: cannot be written ({error.strerror or error})") from error


def refuse_existing(out: str | Path, *, overwrite: bool = False, field: str = "--out") -> None:
    """Refuse an `out` that holds something; with `overwrite`, one that holds more than a model or tokenizer.

    Raises:
        UserError: what is there would be lost.
    """
    out = Path(out)
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        fix = "give a new directory, or --overwrite"
        raise UserError("exists and is not empty", field=field, value=str(out), fix=fix)
    if out.is_symlink() or not out.is_dir():
        fix = "give a new directory"
        raise UserError("is not a directory, which is all that --overwrite replaces", field=field,
                        value=str(out), fix=fix)  # fmt: skip
    for path in sorted(out.iterdir()):
        if path.is_dir() or not any(path.match(pattern) for pattern in MADE_BY_US):
            what = f"holds {path.name}, which is not of a tokenizer or a model: --overwrite would lose it"
            raise UserError(what, field=field, value=str(out), fix="give a new directory")


@contextlib.contextmanager
def whole_directory(out: str | Path, field: str = "--out", *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill that becomes `out` once the block has ended well, and vanishes if it has not.

    With `overwrite` it takes the place of what `out` held, which stays until then.

    Raises:
        UserError: `out` exists and is not an empty directory, see `refuse_existing`.
        InfrastructureError: the disk is full or cannot be written.
    """
    refuse_existing(out, overwrite=overwrite, field=field)
    out = Path(out)
    draft, before = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("partial", "before"))
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in [*draft.iterdir(), draft]:
            sync_directory(path)
        if overwrite and out.is_dir():
            out.rename(before)
        draft.rename(out)
        sync_directory(out.parent)
    except OSError as error:
        raise InfrastructureError(f"{out}: cannot be written ({error}); nothing was left there") from error
    finally:
        if before.is_dir() and not out.exists():
            before.rename(out)
        for gone in (draft, before):
            shutil.rmtree(gone, ignore_errors=True)
