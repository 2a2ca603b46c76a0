"""Saving: every rank writes its share, at once or beside the training, and rank 0 commits the whole."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from tokenization.disk import sync_directory
from tokenization.errors import InfrastructureError
from trainer.checkpoint import rank_files, snapshot
from trainer.checkpoint.history import name_of, scan_checkpoints, to_prune, unfinished
from trainer.checkpoint.manifest import MARKER, Manifest, commit_checkpoint
from trainer.machine.log_lines import logger
from trainer.storage import disk, fragment

Gather = Callable[[Any], list[Any]]
"""Every rank's value, in rank order, on every rank; called from the thread that saves."""


@dataclass(frozen=True)
class RankReport:
    """What a rank says of its part in a save."""

    position: str
    """Digest of where this rank believes the run to be."""
    written: list[rank_files.RankFile]
    failure: str | None


class Saver:
    """Saves this rank's share and, on rank 0, commits and prunes."""

    def __init__(
        self,
        directory: Path,
        *,
        rank: int,
        world_size: int,
        gather: Gather,
        keep_last: int,
        keep_every: int | None,
        asynchronous: bool,
    ) -> None:
        self.directory = directory
        self.rank, self.world_size, self.gather = rank, world_size, gather
        self.keep_last, self.keep_every = keep_last, keep_every
        self.asynchronous = asynchronous
        self.save_s = 0.0
        """From the snapshot to the commit of the last save."""
        self._arena = disk.PinnedBuffer()
        self._thread: threading.Thread | None = None
        self._begun = False
        self._copied = threading.Event()
        self._copied.set()
        self._failure: str | None = None

    def open_directory(self, step: int, needed: int) -> None:
        """On rank 0, before any rank writes: leftovers cleared, room on the disk, an empty directory.

        Raises:
            InfrastructureError: `needed` bytes do not fit.
            OSError: the directory cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        sync_directory(self.directory.parent)
        for left in unfinished(self.directory):
            logger.warning(f"{left}: removed unfinished checkpoint of an interrupted save")
            shutil.rmtree(left)
        path = self.directory / name_of(step)
        self._make_way(path)
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise InfrastructureError(
                f"{self.directory}: a checkpoint needs {needed:,} bytes and {free:,} are free"
            )
        path.mkdir()
        sync_directory(self.directory)

    def _make_way(self, path: Path) -> None:
        """Something that is no good checkpoint has the name of the one to be written."""
        if path.is_symlink() or path.is_file():
            logger.warning(f"{path}: removed; it has a checkpoint's name and is not a directory")
            path.unlink()
        elif path.exists():
            logger.warning(f"{path}: belongs to an abandoned branch of this run; overwriting it")
            _remove(path)

    def save(self, manifest: Manifest, shares: Iterable[Sequence[fragment.Fragment]]) -> None:
        """Writes this rank's fragments, at once or in the background; `prepare` came before on rank 0.

        `manifest` needs no files and weights yet. Each of `shares` becomes a file and is in memory until the
        next is asked for. With `asynchronous` this returns at once, all are in memory together, and their
        tensors must not change before `wait_for_snapshot` has returned.
        Whatever fails, on whichever rank, is told by `wait` on every rank.
        """
        started, self._begun = time.monotonic(), True
        live = list(shares) if self.asynchronous else shares
        ready, begin = snapshot.record_event(), snapshot.use_same_gpu()
        self._copied.clear()

        def work() -> None:
            try:
                begin()
                self._failure = self._save(manifest, live, ready)
            except Exception as error:  # the ranks could not meet: one of them is gone
                self._failure = _told(error)
            self.save_s = time.monotonic() - started

        if self.asynchronous:
            self._thread = threading.Thread(target=work, name="save")
            self._thread.start()
        else:
            work()

    def wait_for_snapshot(self) -> None:
        """Before weights and moments change: waits until those of the save under way are copied.

        Forward and backward change neither, so that this is seldom worth a wait.
        """
        self._copied.wait()

    @property
    def under_way(self) -> bool:
        """Whether a save was begun that `wait` has not ended."""
        return self._begun

    def wait(self) -> str | None:
        """Ends the save under way; its failure in a line, or None."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._begun = False
        failure, self._failure = self._failure, None
        return failure

    def last_good(self) -> str:
        """For messages: which checkpoint a restart would use."""
        try:
            good, _ = scan_checkpoints(self.directory)
        except InfrastructureError as error:
            return str(error)
        return f"last good checkpoint: {good[-1].path if good else 'none'}"

    def _save(
        self, manifest: Manifest, live: Iterable[Sequence[fragment.Fragment]], ready: Callable[[], None]
    ) -> str | None:
        """Writes, meets the other ranks, commits on rank 0; the same failure, or None, on every rank."""
        path = self.directory / name_of(manifest.step)
        written, failure = [], None
        try:
            try:
                if self.asynchronous:
                    live = [snapshot.snapshot([f for share in live for f in share], self._arena, ready)]
            finally:
                self._copied.set()
            for number, share in enumerate(live):
                part = f"-{number:05d}" if number else ""
                written.append(self._write(path / f"rank-{self.rank:05d}{part}.safetensors", share))
        except Exception as error:  # the other ranks wait to hear of it
            failure = _told(error)
        shares: list[RankReport] = self.gather(RankReport(_position(manifest), written, failure))
        failure = _disagreement(shares)
        if self.rank == 0 and failure is None:
            failure = self._commit(path, manifest, [file for share in shares for file in share.written])
        failure = self.gather(failure)[0]
        if self.rank == 0:
            if failure is not None:
                with contextlib.suppress(OSError):
                    _remove(path)  # what it holds is of no use, and the disk may be full of it
            else:
                self._prune()
        return failure

    def _write(self, file: Path, fragments: Sequence[fragment.Fragment]) -> rank_files.RankFile:
        try:
            written = rank_files.write_rank_file(file, fragments)
            sync_directory(file.parent)
        except OSError as error:
            raise InfrastructureError(f"{file}: {_told(error)}") from error
        return written

    def _commit(self, path: Path, manifest: Manifest, shares: Sequence[rank_files.RankFile]) -> str | None:
        try:
            if missing := rank_files.missing_elements(shares):
                raise InfrastructureError(f"the ranks' shares leave holes: {missing[0]}; this is a defect")
            files = {share.file: (share.size, share.checksum) for share in shares}
            beside = {
                file.name: disk.sync_and_checksum(file) for file in path.iterdir() if file.name not in files
            }
            whole = replace(
                manifest,
                files={**files, **beside},
                weights=rank_files.add_checksums(share.weights for share in shares),
            )
            commit_checkpoint(path, whole)
            return None
        except Exception as error:
            return f"{path}: {_told(error)}"

    def _prune(self) -> None:
        """Removes what need not be kept; that it cannot be removed does not undo the save."""
        try:
            good, _ = scan_checkpoints(self.directory)
            steps = [(checkpoint.manifest.step, checkpoint.manifest.tokens) for checkpoint in good]
            for step in to_prune(steps, self.keep_last, self.keep_every):
                _remove(self.directory / name_of(step))
        except (OSError, InfrastructureError) as error:
            logger.warning(f"{self.directory}: old checkpoints cannot be removed ({_told(error)})")


def _position(manifest: Manifest) -> str:
    """What all ranks must agree on."""
    fields = asdict(manifest)
    agreed = [fields[name] for name in ("step", "tokens", "adam_step", "state")]
    return xxhash.xxh3_128_hexdigest(json.dumps(agreed, sort_keys=True).encode())


def _disagreement(shares: Sequence[RankReport]) -> str | None:
    """Why these shares make no checkpoint, or None."""
    for rank, share in enumerate(shares):
        if share.failure is not None:
            return f"rank {rank}: {share.failure}"
    others = [str(rank) for rank, share in enumerate(shares) if share.position != shares[0].position]
    if others:
        return f"ranks {', '.join(others)} are at another position of the run than rank 0; this is a defect"
    return None


def _remove(path: Path) -> None:
    """The marker goes first, so that a half-removed checkpoint never counts."""
    (path / MARKER).unlink(missing_ok=True)
    sync_directory(path)
    shutil.rmtree(path)


def _told(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or str(error) or type(error).__name__
