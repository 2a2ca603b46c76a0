"""Remove stale lock files from torch's cache of compiled extensions while a start waits for them.

A rank that is killed while it builds or loads a compiled op leaves its `lock` file, and every later
start, unattended requeues included, would wait for that lock without end and without a message.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from trainer.machine.log_lines import EVERY_RANK, logger

SHARED_LOCK_AGE_S = 1800.0
"""Age at which a lock on a network file system counts as stale: longer than any build takes."""

NETWORK = re.compile(r"nfs|cifs|smb|lustre|gpfs|beegfs|ceph|glusterfs|afs|fuse\.|9p|wekafs")
"""How the types of file systems begin that several machines share."""


def extension_cache() -> Path:
    """Return the directory where torch builds its compiled ops."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def ops_being_built(cache: Path | None = None) -> list[str]:
    """Return the names of the ops that some process compiles, or waits to load, at this moment."""
    return sorted({lock.parent.name for lock in _locks(extension_cache() if cache is None else cache)})


@contextlib.contextmanager
def clearing_stale_locks(cache: Path | None = None, every_s: float = 5.0) -> Iterator[None]:
    """Remove stale locks at once and while the block runs, since a holder may die while we wait for it."""
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


def clear_stale_locks(cache: Path | None = None) -> list[Path]:
    """Remove the locks in torch's extension cache that no live process holds; return them."""
    cache = extension_cache() if cache is None else cache
    cleared = []
    for lock in _locks(cache):
        with contextlib.suppress(OSError):  # its holder, or another rank, has just removed it
            seen = lock.stat()
            if _is_in_use(lock, seen):
                continue
            time.sleep(0.1)  # a holder closes the file a moment before it removes it
            now = lock.stat()
            if _is_in_use(lock, now) or (now.st_ino, now.st_ctime_ns) != (seen.st_ino, seen.st_ctime_ns):
                continue
            lock.unlink()
            cleared.append(lock)
            logger.warning(f"removed the stale lock {lock} of a process that was killed", extra=EVERY_RANK)
    return cleared


def _locks(cache: Path) -> list[Path]:
    return sorted([*cache.glob("*/lock"), *cache.glob("*/*/lock")])


def _is_in_use(lock: Path, stat: os.stat_result) -> bool:
    """Tell whether a live process may hold the lock.

    A holder has the file open. A compiler that outlived its rank works in the lock's directory. Processes
    of other users and other machines cannot be seen, so that their locks count as in use.
    """
    if stat.st_uid != os.geteuid():
        return True
    if _on_network(lock) and time.time() - stat.st_mtime < SHARED_LOCK_AGE_S:
        return True
    path, folder = str(lock.resolve()), str(lock.parent.resolve())
    for process in psutil.process_iter(["cwd", "open_files"]):
        if process.info["cwd"] == folder and process.pid != os.getpid():
            return True
        if any(file.path == path for file in process.info["open_files"] or ()):
            return True
    return False


def _on_network(file: Path) -> bool:
    """Tell whether other machines see the file system that holds `file`."""
    path = file.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    mounts.sort(key=lambda mount: len(mount.mountpoint))  # the last one hides those below it
    return bool(mounts) and NETWORK.match(mounts[-1].fstype) is not None
