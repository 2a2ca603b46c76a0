"""Save a run: every rank writes its fragments, now or in the background, and rank 0 commits them."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenization.disk import sync_path
from tokenization.errors import InfrastructureError, RewarmError
from trainer.checkpoint import rank_files, snapshot
from trainer.checkpoint.history import name_of, scan_checkpoints, to_prune, unfinished
from trainer.checkpoint.manifest import MARKER, Manifest, Position, commit_checkpoint
from trainer.machine.log_lines import logger
from trainer.storage.disk import PinnedBuffer, sync_and_checksum
from trainer.storage.fragment import Fragment

Gather = Callable[[Any], list[Any]]
"""All-gather: every rank's value, in rank order; called from the thread that saves."""


class NotFinite(str):
    """The failure of a save whose weights are not numbers: another disk does not help."""


@dataclass(frozen=True)
class RankReport:
    """A rank's report on its part in a save."""

    position: str
    """`Position.digest` of this rank."""
    files: list[rank_files.RankFile]
    failure: str | None


class Saver:
    """Saves this rank's fragments and, on rank 0, commits and prunes checkpoints."""

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
        """Seconds from the start of the snapshot to the commit, of the last save."""
        self._buffer = PinnedBuffer()
        self._thread: threading.Thread | None = None
        self._begun = False
        self._copied = threading.Event()
        self._copied.set()
        self._failure: str | None = None

    def open_directory(self, step: int, needed: int) -> None:
        """Make an empty directory for the checkpoint; rank 0 calls it before any rank writes.

        Raises:
            InfrastructureError: `needed` bytes are not free.
            OSError: the directory cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        sync_path(self.directory.parent)
        for path in unfinished(self.directory):
            logger.warning(f"{path}: removed unfinished checkpoint of an interrupted save")
            shutil.rmtree(path)
        path = self.directory / name_of(step)
        self._make_way(path)
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise InfrastructureError(
                f"{self.directory}: a checkpoint needs {needed:,} bytes and {free:,} are free"
            )
        path.mkdir()
        sync_path(self.directory)

    def _make_way(self, path: Path) -> None:
        """Remove whatever has the name of the checkpoint to be written."""
        if path.is_symlink() or path.is_file():
            logger.warning(f"{path}: is not a directory; removed")
            path.unlink()
        elif path.exists():
            logger.warning(f"{path}: belongs to an abandoned branch of this run; overwriting it")
            _remove(path)

    def save(self, position: Position, shares: Iterable[Sequence[Fragment]]) -> None:
        """Write this rank's fragments, now or in the background, after `open_directory` on rank 0.

        Each of `shares` becomes a file, and is in memory until the next is asked for. With `asynchronous`
        this returns at once, all are in memory together, and their tensors must not change before
        `wait_for_snapshot` has returned. `wait` returns a failure of any rank, on every rank.
        """
        started, self._begun = time.monotonic(), True
        live = list(shares) if self.asynchronous else shares
        ready, use_gpu = snapshot.record_event(), snapshot.use_same_gpu()
        self._copied.clear()

        def work() -> None:
            try:
                use_gpu()
                self._failure = self._save(position, live, ready)
            except Exception as error:  # the all-gather failed: a rank has died
                self._failure = _reason(error)
            self.save_s = time.monotonic() - started

        if self.asynchronous:
            self._thread = threading.Thread(target=work, name="save")
            self._thread.start()
        else:
            work()

    def wait_for_snapshot(self) -> None:
        """Wait until a save in progress has copied weights and moments, before they change.

        Forward and backward change neither, so that the copy has usually ended by then.
        """
        self._copied.wait()

    @property
    def under_way(self) -> bool:
        """Whether a save has begun that `wait` has not ended."""
        return self._begun

    def wait(self) -> str | None:
        """End the save in progress; return its failure in a line, or None."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._begun = False
        failure, self._failure = self._failure, None
        return failure

    def last_good(self) -> str:
        """Tell, for messages, which checkpoint a restart would use."""
        try:
            good, _ = scan_checkpoints(self.directory)
        except RewarmError as error:
            return str(error)
        return f"last good checkpoint: {good[-1].path if good else 'none'}"

    def _save(
        self, position: Position, live: Iterable[Sequence[Fragment]], ready: Callable[[], None]
    ) -> str | None:
        """Write, exchange reports, commit on rank 0; return the same failure, or None, on every rank."""
        path = self.directory / name_of(position.step)
        files, failure = [], None
        try:
            try:
                if self.asynchronous:
                    live = [snapshot.snapshot([f for share in live for f in share], self._buffer, ready)]
            finally:
                self._copied.set()
            for number, share in enumerate(live):
                part = f"-{number:05d}" if number else ""
                files.append(_write(path / f"rank-{self.rank:05d}{part}.safetensors", share))
        except Exception as error:  # the other ranks wait for this rank's report
            failure = _reason(error)
        reports: list[RankReport] = self.gather(RankReport(position.digest, files, failure))
        failure = _disagreement(reports)
        if self.rank == 0 and failure is None:
            failure = _commit(path, position, [file for report in reports for file in report.files])
        failure = self.gather(failure)[0]
        if self.rank == 0:
            if failure is not None:
                with contextlib.suppress(OSError):
                    _remove(path)  # it is useless, and the disk may be full because of it
            else:
                self._prune()
        return failure

    def _prune(self) -> None:
        """Remove the checkpoints that need not be kept; if that fails, the save still counts."""
        try:
            good, _ = scan_checkpoints(self.directory)
            steps = [(checkpoint.manifest.step, checkpoint.manifest.tokens) for checkpoint in good]
            for step in to_prune(steps, self.keep_last, self.keep_every):
                _remove(self.directory / name_of(step))
        except (OSError, RewarmError) as error:
            logger.warning(f"{self.directory}: old checkpoints cannot be removed ({_reason(error)})")


def _write(file: Path, fragments: Sequence[Fragment]) -> rank_files.RankFile:
    try:
        written = rank_files.write_rank_file(file, fragments)
        sync_path(file.parent)
    except OSError as error:
        raise InfrastructureError(f"{file}: {_reason(error)}") from error
    return written


def _commit(path: Path, position: Position, files: Sequence[rank_files.RankFile]) -> str | None:
    """Commit the checkpoint with the ranks' files, and what else is in its directory; return a failure."""
    try:
        if missing := rank_files.missing_elements(files):
            raise InfrastructureError(f"ranks' files are incomplete: {missing[0]}; please report this bug")
        listed = {file.file: (file.size, file.checksum) for file in files}
        others = [file for file in path.iterdir() if file.name not in listed]
        manifest = Manifest(
            **vars(position),
            files=listed | {file.name: sync_and_checksum(file) for file in others},
            weights=rank_files.add_checksums(file.weights for file in files),
        )
        commit_checkpoint(path, manifest)
        return None
    except Exception as error:
        return f"{path}: {_reason(error)}"


def _disagreement(reports: Sequence[RankReport]) -> str | None:
    """Tell why these reports do not make a checkpoint; None if they do."""
    for rank, report in enumerate(reports):
        if report.failure is not None:
            return f"rank {rank}: {report.failure}"
    others = [str(rank) for rank, report in enumerate(reports) if report.position != reports[0].position]
    if others:
        return f"ranks {', '.join(others)} disagree with rank 0 about step or tokens; please report this bug"
    bad = sorted({name for report in reports for file in report.files for name in file.not_finite})
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        return NotFinite(f"{bad[0]}{more} holds weights that are not finite (NaN or infinity)")
    return None


def _remove(path: Path) -> None:
    """Remove a checkpoint, its marker first, so that a half-removed one never counts."""
    (path / MARKER).unlink(missing_ok=True)
    sync_path(path)
    shutil.rmtree(path)


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or str(error) or type(error).__name__
