"""Files that a power cut cannot halve: the one atomic writer, the one sync, the one checksum."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from tokenization.errors import InfrastructureError

BLOCK = 1 << 23
"""Bytes that are read and hashed at once."""


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
    """Make new and removed names in the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
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
