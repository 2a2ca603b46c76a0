"""Copies of committed checkpoints in another place, such as an object store, made after the local commit."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import fsspec

from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint.manifest import MARKER
from trainer.machine.log_lines import logger


def check_mirror(url: str | None) -> None:
    """Check that a place is one that fsspec knows, without reaching for it.

    Raises:
        UserError: it is not, or the package for it is not installed.
    """
    if url is None:
        return
    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        fix = "write a place like s3://bucket/runs; s3 needs the package s3fs, gs the package gcsfs"
        raise UserError(f"cannot be used ({error})", field="checkpoint.mirror", value=url, fix=fix) from error


class Mirror:
    """Copies one checkpoint after another in a thread of its own; its failures are warnings.

    The marker is copied last, so that a copy that was cut short does not count, here as there.
    """

    def __init__(self, url: str, run: str) -> None:
        """Copy to `url`/`run`/checkpoints.

        Raises:
            UserError: see `check_mirror`.
            InfrastructureError: the store cannot be reached.
        """
        check_mirror(url)
        try:
            self._files, root = fsspec.core.url_to_fs(url)
            self._root = f"{root.rstrip('/')}/{run}/checkpoints"
            self._files.makedirs(self._root, exist_ok=True)
        except Exception as error:  # whatever the store's own package raises
            raise InfrastructureError(f"checkpoint.mirror: {url}: cannot be reached ({error})") from error
        self._url, self._next = url, threading.Condition()
        self._waiting: Path | None = None
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def add(self, path: Path) -> None:
        """Copy a committed checkpoint when the one before is done; one that still waits gives way to it."""
        with self._next:
            self._waiting = path
            self._next.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait until all is copied, at most so long; say so if it is not."""
        end = time.monotonic() + seconds
        with self._next:
            while (self._busy or self._waiting is not None) and (left := end - time.monotonic()) > 0:
                self._next.wait(left)
            if self._busy or self._waiting is not None:
                logger.warning(f"{self._url}: the last checkpoint is not copied yet; the local one is whole")

    def _work(self) -> None:
        while True:
            with self._next:
                while self._waiting is None:
                    self._next.wait()
                path, self._waiting, self._busy = self._waiting, None, True
            try:
                self._copy(path)
            except Exception as error:  # the run goes on: its own checkpoint is committed
                reason = " ".join(str(error).split())[:200]
                logger.warning(f"{self._url}: {path.name} is not copied ({reason}); the local one is whole")
            with self._next:
                self._busy = False
                self._next.notify_all()

    def _copy(self, path: Path) -> None:
        target = f"{self._root}/{path.name}"
        marker = (path / MARKER).read_bytes()
        if self._files.exists(f"{target}/{MARKER}"):
            if self._files.cat_file(f"{target}/{MARKER}") == marker:
                return
            self._files.rm_file(f"{target}/{MARKER}")  # of an abandoned branch of the run
        self._files.makedirs(target, exist_ok=True)
        for file in sorted(path.iterdir()):
            if file.name != MARKER:
                self._files.put_file(str(file), f"{target}/{file.name}")
        self._files.pipe_file(f"{target}/{MARKER}", marker)
