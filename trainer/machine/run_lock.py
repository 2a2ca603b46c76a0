"""One job at a time in a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenization.errors import InfrastructureError
from trainer.storage.run_directory import RunDirectory

PATIENCE_S = 60.0
"""For how long a job that was killed, or told to stop, may take to be gone."""


@contextmanager
def hold_run_lock(
    directory: Path, say: Callable[[str], None], patience_s: float = PATIENCE_S
) -> Iterator[bool]:
    """Within it no other process that claims `directory` trains there; whether it had to be waited for.

    A requeued job may start while the job before it is still ending.

    Raises:
        InfrastructureError: another one trains there, and goes on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(RunDirectory(directory).lock, "a+", encoding="utf-8") as file:
        waited = not _taken(file.fileno(), say)
        if waited:
            holder = _holder(directory)
            say(f"{directory}: {holder} is still here; waiting up to {patience_s:.0f} s for its end")
            deadline = time.monotonic() + patience_s
            while not _taken(file.fileno(), say):
                if time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"{directory}: {holder} trains here; end it, or give this run another run_dir"
                    )
                time.sleep(0.1)
        file.truncate(0)
        job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        file.write(f"process {os.getpid()} on {socket.gethostname()}{job}\n")
        file.flush()
        yield waited


def _taken(descriptor: int, say: Callable[[str], None]) -> bool:
    """Whether the lock is ours now; a file system without locks is said, and gone on with."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        say(f"run_dir cannot be locked ({error.strerror}): see to it that one job at a time trains there")
    return True


def _holder(directory: Path) -> str:
    return RunDirectory(directory).lock.read_text(encoding="utf-8").strip() or "another process"
