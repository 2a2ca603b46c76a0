"""Bytes that a power cut cannot take back, written at the disk's own speed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash

BLOCK = 1 << 23
"""Bytes that are copied, hashed and handed to the disk at once."""

PAGE = 4096
"""What direct writes are aligned to."""


def write(path: Path, parts: Iterable[torch.Tensor]) -> tuple[int, str]:
    """Writes `parts` (bytes, on any device) one after another and syncs them; size and xxh3-128.

    The page cache is gone round where the file system allows it: a checkpoint is not read again
    soon, and a copy in memory that must be flushed anyway makes a synced write several times slower.
    One block is filled and hashed while the one before is written.

    Raises:
        OSError: the disk is full or fails.
    """
    hasher, size = xxhash.xxh3_128(), 0
    blocks = [torch.frombuffer(mmap.mmap(-1, BLOCK), dtype=torch.uint8) for _ in range(2)]
    file = _open(path)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            under_way: Future[None] | None = None
            for number, filled in enumerate(_fill(blocks, parts)):
                view = blocks[number % 2].numpy().data[:filled]
                hasher.update(view)
                if under_way is not None:
                    under_way.result()
                under_way = pool.submit(_write_all, file, view)
                size += filled
            if under_way is not None:
                under_way.result()
        os.fsync(file)
    finally:
        os.close(file)
    return size, hasher.hexdigest()


def _fill(blocks: list[torch.Tensor], parts: Iterable[torch.Tensor]) -> Iterator[int]:
    """Copies `parts` into one block after the other; how many bytes each one holds."""
    number = used = 0
    for part in parts:
        done = 0
        while done < part.numel():
            count = min(BLOCK - used, part.numel() - done)
            blocks[number % 2][used : used + count].copy_(part[done : done + count])
            done, used = done + count, used + count
            if used == BLOCK:
                yield used
                number, used = number + 1, 0
    if used:
        yield used


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)  # this file system has no direct writes


def _write_all(file: int, view: memoryview) -> None:
    """All of `view`; what is not aligned, the last bytes of a file, goes through the page cache."""
    done = 0
    while done < len(view):
        rest = len(view) - done
        whole = rest - rest % PAGE or rest
        if whole % PAGE:
            _through_the_cache(file)
        try:
            done += os.write(file, view[done : done + whole])
        except OSError as error:
            if error.errno != errno.EINVAL or not _through_the_cache(file):
                raise


def _through_the_cache(file: int) -> bool:
    """Ends direct writing to `file`; whether it was direct."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)


def checksum(path: Path) -> str:
    """xxh3-128 of a file."""
    hasher = xxhash.xxh3_128()
    block = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            hasher.update(block[:count])
    return hasher.hexdigest()


def proof(path: Path) -> tuple[int, str]:
    """Size and xxh3-128 of a file that was written by other means; it is synced here."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, checksum(path)


def write_text(path: Path, text: str) -> None:
    """The file appears under its name only when all of it is on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes new and removed names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that need no such thing answer so
            raise
    finally:
        os.close(descriptor)


class Arena:
    """Host memory that is used again and again; with a GPU it is pinned, so that copies to it are fast."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def room(self, size: int) -> torch.Tensor:
        """`size` bytes; they are those of the last call, so that one must be done with."""
        if self._memory.numel() < size:
            self.release()
            pages = mmap.mmap(-1, size)
            with contextlib.suppress(OSError):  # a kernel may be built without huge pages
                pages.madvise(mmap.MADV_HUGEPAGE)  # fewer and cheaper first touches
            self._memory = torch.frombuffer(pages, dtype=torch.uint8)
            if torch.cuda.is_available():
                # Where the system pins no more, copies are as right and slower.
                torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), size, 0)
        return self._memory[:size]

    def release(self) -> None:
        """Gives the memory back."""
        if self._memory.numel() and self._memory.is_pinned():
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
        self._memory = torch.empty(0, dtype=torch.uint8)
