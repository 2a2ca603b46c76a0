"""Durable files: the atomic writer, the sync, the checksum, and directories that are whole or absent."""

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
"""Bytes that are read and hashed in one step."""

MADE_BY_US = ("*.json", "*.model", "*.safetensors", "*.jinja", "merges.txt", "README.md")
"""Names of the files in the directory of a tokenizer or a model."""


def with_ending(prefix: Path, ending: str) -> Path:
    """Return the path of the file of `prefix` that has that ending."""
    return prefix.with_name(prefix.name + ending)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file so that it holds either its old content or all of `text`, even after a power cut.

    Raises:
        OSError: the disk is full or fails.
    """
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Make the content of a file, or new and removed names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the answer of a file system that does not need it
            raise
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Return the xxh3-128 of a file, in constant memory."""
    digest = xxhash.xxh3_128()
    block = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk failure into an error that names `path`."""
    try:
        yield
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror or error})"
        raise InfrastructureError(what + room_to_make(error)) from error


def room_to_make(error: OSError) -> str:
    """Return what ends the line of an error where the disk or the quota is full; nothing for other errors."""
    return "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""


def refuse_existing(out: str | Path, *, overwrite: bool = False, field: str = "--out") -> None:
    """Refuse an `out` that exists; with `overwrite`, one that holds more than a model or a tokenizer.

    Raises:
        UserError: existing files would be lost.
    """
    out = Path(out)
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        fix = "give a new directory, or --overwrite"
        raise UserError("exists and is not empty", field=field, value=str(out), fix=fix)
    if out.is_symlink() or not out.is_dir():
        fix = "give a new directory"
        raise UserError("is not a directory, and --overwrite replaces only directories", field=field,
                        value=str(out), fix=fix)  # fmt: skip
    for path in sorted(out.iterdir()):
        if path.is_dir() or not any(path.match(pattern) for pattern in MADE_BY_US):
            what = f"has {path.name}, which is not of a tokenizer or a model: --overwrite would delete it"
            raise UserError(what, field=field, value=str(out), fix="give a new directory")


@contextlib.contextmanager
def whole_directory(out: str | Path, field: str = "--out", *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a directory to fill: it becomes `out` when the block ends well, and is removed when it fails.

    With `overwrite` it replaces the old content of `out`, which stays until then.

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
            sync_path(path)
        if overwrite and out.is_dir():
            out.rename(before)
        draft.rename(out)
        sync_path(out.parent)
    except OSError as error:
        what = f"{out}: cannot be written ({error}); nothing was left there"
        raise InfrastructureError(what + room_to_make(error)) from error
    finally:
        if before.is_dir() and not out.exists():
            before.rename(out)
        for gone in (draft, before):
            shutil.rmtree(gone, ignore_errors=True)
