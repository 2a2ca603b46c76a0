"""Remove stale lock files from torch's cache of compiled extensions before a start waits for them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.machine.log_lines import EVERY_RANK, logger


def extension_cache() -> Path:
    """Where torch builds its compiled ops, as torch itself finds it."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def clear_stale_locks(cache: Path | None = None) -> list[Path]:
    """Removes locks in torch's extension cache that no live process holds, and says so.

    A rank killed while it builds or loads a compiled op leaves its `lock`, for which every later start
    would wait for ever without a word. A live holder has the file open; a compiler that outlived its rank
    works in the lock's folder, and is waited for. What another user, machine or container holds cannot be
    seen: locks of other users, and young ones on network file systems, are left alone.
    """
    cache = extension_cache() if cache is None else cache
    locks = sorted([*cache.glob("*/lock"), *cache.glob("*/*/lock")])
    if not locks or not Path("/proc/self/fd").is_dir() or not os.access(cache, os.W_OK):
        return []
    cleared = []
    with _one_at_a_time(cache):
        for lock in locks:
            if _is_stale(lock):
                lock.unlink(missing_ok=True)
                cleared.append(lock)
                logger.warning(
                    f"removed {lock}, left by a killed process: every start would have waited for it",
                    extra=EVERY_RANK,
                )
    return cleared


@contextlib.contextmanager
def clearing_stale_locks(cache: Path | None = None, every_s: float = 5.0) -> Iterator[None]:
    """`clear_stale_locks` at once and while the block runs: a holder may die while we wait for it."""
    clear_stale_locks(cache)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            clear_stale_locks(cache)

    thread = threading.Thread(target=watch, name="stale-locks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


SHARED_LOCK_AGE_S = 1800.0
"""On a network file system a lock must be this old, longer than any build, to be taken for a dead one's."""


def _is_stale(lock: Path) -> bool:
    try:
        owner = lock.stat()
    except FileNotFoundError:
        return False
    if owner.st_uid != os.geteuid():
        return False
    if _on_network(lock) and time.time() - owner.st_mtime < SHARED_LOCK_AGE_S:
        return False
    while _works_in(lock.parent) and not _is_open(lock):
        time.sleep(0.2)
    # A holder closes the file a moment before it removes it: what is stale is so at a second look.
    for _ in range(2):
        if _is_open(lock):
            return False
        time.sleep(0.1)
    return lock.exists()


def _links(what: str) -> Iterator[str]:
    """Targets of all links /proc/*/`what` that may be read."""
    for link in Path("/proc").glob(f"[0-9]*/{what}"):
        try:
            yield os.readlink(link)
        except OSError:  # the process has just ended, or is another user's
            continue


def _is_open(file: Path) -> bool:
    return str(file.resolve()) in _links("fd/*")


def _works_in(folder: Path) -> bool:
    """Whether a process other than this one has `folder` as its current directory."""
    world = str(folder.resolve())
    return world != os.getcwd() and world in _links("cwd")


NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "fuse.",
    "9p",
    "wekafs",
)
"""How the names of file systems begin that several machines share."""


def _on_network(file: Path) -> bool:
    """Whether the mount that holds `file` is one that other machines see."""
    real = str(file.resolve())
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind.startswith(NETWORK)


@contextlib.contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Two ranks that clear at once could remove each other's new lock."""
    with (cache / ".rewarm").open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no such locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
