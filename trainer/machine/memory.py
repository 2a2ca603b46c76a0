"""How this process takes memory from the operating system."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next allocation, in place of giving it back to the kernel.

    A training step on the CPU takes and frees the same large tensors again and again; each time the kernel
    would map new pages and fill them with zeros, which was a fifth of a step's time. Without glibc nothing
    happens.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
