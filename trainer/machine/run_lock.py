"""The run lock: one job at a time trains in a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenization.errors import InfrastructureError
from trainer.machine.log_lines import logger
from trainer.storage.run_directory import RunDirectory

PATIENCE_S = 60.0
"""Time that a job which was killed, or told to stop, may take to exit."""


@contextmanager
def hold_run_lock(directory: Path, patience_s: float = PATIENCE_S) -> Iterator[bool]:
    """Hold the lock of a run directory; yield whether another job had to be waited for.

    A requeued job may start while the job before it is still exiting.

    Raises:
        InfrastructureError: another job holds the lock and does not exit.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(RunDirectory(directory).lock, "a+", encoding="utf-8") as file:
        waited = not _try_lock(file.fileno())
        if waited:
            in_use = f"{directory}: run directory is in use by {_holder(directory)}"
            logger.warning(f"{in_use}; waiting up to {patience_s:.0f} s for it to exit")
            deadline = time.monotonic() + patience_s
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise InfrastructureError(f"{in_use}; stop that job or choose another run_dir")
                time.sleep(0.1)
        file.truncate(0)
        job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        file.write(f"process {os.getpid()} on {socket.gethostname()}{job}\n")
        file.flush()
        yield waited


def _try_lock(descriptor: int) -> bool:
    """Try to take the lock; return whether this job may train, as on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        logger.warning(
            f"this file system has no locks ({error.strerror}); make sure that only one job uses run_dir"
        )
    return True


def _holder(directory: Path) -> str:
    return RunDirectory(directory).lock.read_text(encoding="utf-8").strip() or "another process"
