"""Write files and directories that survive a power cut, at the speed of the disk."""

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

from tokenization.disk import BLOCK, checksum, sync_path

PAGE = 4096
"""Alignment of direct writes, in bytes."""


def write_direct(path: Path, parts: Iterable[torch.Tensor]) -> tuple[int, str]:
    """Write and sync `parts` (bytes, on any device) one after another; return the size and the xxh3-128.

    The write bypasses the page cache if the file system allows it: a checkpoint is not read again
    soon, and a copy in memory that must be flushed anyway makes a synced write several times slower.
    One block is filled and hashed while the one before it is written.

    Raises:
        OSError: the disk is full or fails.
    """
    hasher, size = xxhash.xxh3_128(), 0
    blocks = [torch.frombuffer(mmap.mmap(-1, BLOCK), dtype=torch.uint8) for _ in range(2)]
    file = _open(path)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            pending: Future[None] | None = None
            for number, filled in enumerate(_fill(blocks, parts)):
                view = blocks[number % 2].numpy().data[:filled]
                hasher.update(view)
                if pending is not None:
                    pending.result()
                pending = pool.submit(_write_all, file, view)
                size += filled
            if pending is not None:
                pending.result()
        os.fsync(file)
    finally:
        os.close(file)
    return size, hasher.hexdigest()


def _fill(blocks: list[torch.Tensor], parts: Iterable[torch.Tensor]) -> Iterator[int]:
    """Copy `parts` into the two blocks in turn; yield how many bytes each one holds."""
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
        return os.open(path, flags, 0o644)  # this file system does not support direct writes


def _write_all(file: int, view: memoryview) -> None:
    """Write all of `view`; the last bytes of a file, which are not aligned, go through the page cache."""
    done = 0
    while done < len(view):
        rest = len(view) - done
        whole = rest - rest % PAGE or rest
        if whole % PAGE:
            _use_page_cache(file)
        try:
            done += os.write(file, view[done : done + whole])
        except OSError as error:
            if error.errno != errno.EINVAL or not _use_page_cache(file):
                raise


def _use_page_cache(file: int) -> bool:
    """Stop direct writing to `file`; return whether it was direct."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)


def sync_and_checksum(path: Path) -> tuple[int, str]:
    """Sync a file that was written by other means; return its size and xxh3-128."""
    sync_path(path)
    return path.stat().st_size, checksum(path)


class PinnedBuffer:
    """Host memory that every snapshot reuses; with a GPU it is pinned, so that copies to it are fast."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> torch.Tensor:
        """Return `size` bytes; they overwrite those of the last call."""
        if self._memory.numel() < size:
            self.release()
            pages = mmap.mmap(-1, size)
            with contextlib.suppress(OSError):  # a kernel may be built without huge pages
                pages.madvise(mmap.MADV_HUGEPAGE)  # fewer and cheaper first touches
            self._memory = torch.frombuffer(pages, dtype=torch.uint8)
            if torch.cuda.is_available():
                # If the system refuses to pin more, copies are still correct, and slower.
                torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), size, 0)
        return self._memory[:size]

    def release(self) -> None:
        """Free the memory."""
        if self._memory.numel() and self._memory.is_pinned():
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
        self._memory = torch.empty(0, dtype=torch.uint8)
