"""Checkpoints that are whole or do not count.

`step-00001000/` holds a file per rank and counts only once `COMMITTED` (the manifest) is there,
which rank 0 writes last, after every rank has written, synced and signed its file. The ranks meet
in the file system and not in a collective, so that a save can go on beside the training.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import portable
from trainer.errors import InfrastructureError

VERSION = 1
MARKER = "COMMITTED"
"""The manifest's file; a checkpoint without it does not count."""

HIGHEST = "highest.json"
"""Beside the checkpoints: the newest committed step. With it and no good checkpoint, something is lost."""


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint is, and the proof that it is whole."""

    version: int
    step: int
    tokens: int
    world_size: int
    stage: int
    files: dict[str, tuple[int, str]]
    """Name to (bytes, xxh3-128)."""
    weights: dict[str, int]
    """Parameter to `portable.position_checksum`."""
    adam_step: int
    loss_scale: dict[str, float]
    state: dict[str, Any]
    """Position and identity of the run; see `trainer.scheduler.state`."""
    baseline: dict[str, float]
    """The base's bits_per_byte on each validation set."""
    recipe: str
    """The resolved recipe."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint on disk."""

    path: Path
    manifest: Manifest

    @property
    def files(self) -> list[Path]:
        """The ranks' files."""
        return [self.path / name for name in sorted(self.manifest.files)]


def name_of(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def read(path: Path) -> Checkpoint:
    """Opens a committed checkpoint and checks that its files have their sizes.

    Raises:
        InfrastructureError: not committed, manifest damaged, a file missing or of another size.
    """
    try:
        tree = json.loads((path / MARKER).read_text(encoding="utf-8"))
        tree["files"] = {name: (int(size), str(proof)) for name, (size, proof) in tree["files"].items()}
        manifest = Manifest(**tree)
    except FileNotFoundError as error:
        raise InfrastructureError(f"{path}: was never committed (no {MARKER})") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InfrastructureError(f"{path / MARKER}: cannot be read ({error})") from error
    if manifest.version != VERSION:
        raise InfrastructureError(f"{path / MARKER}: version {manifest.version}, this code reads {VERSION}")
    for name, (size, _) in manifest.files.items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            raise InfrastructureError(f"{path / name}: cannot be read ({error.strerror})") from error
        if found != size:
            raise InfrastructureError(f"{path / name}: has {found} bytes, was saved with {size}")
    return Checkpoint(path, manifest)


def scan(directory: Path) -> tuple[list[Checkpoint], list[str]]:
    """All good checkpoints, oldest first, and a line for each that is not (never deleted in silence)."""
    good, broken = [], []
    for path in sorted(directory.glob("step-*")):
        try:
            good.append(read(path))
        except InfrastructureError as error:
            broken.append(str(error))
    return good, broken


def has_committed(directory: Path) -> bool:
    """Whether a checkpoint was ever committed here, be it good or not."""
    return (directory / HIGHEST).exists() or any(directory.glob(f"step-*/{MARKER}"))


def verify(checkpoint: Checkpoint, part: int = 0, parts: int = 1) -> list[str]:
    """Checksums this rank's `part` of the files; a line for each damaged one."""
    damaged = []
    for number, (name, (_, expected)) in enumerate(sorted(checkpoint.manifest.files.items())):
        if number % parts != part:
            continue
        path = checkpoint.path / name
        try:
            found = portable.checksum(path)
        except OSError as error:
            damaged.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if found != expected:
            damaged.append(f"{path}: checksum {found}, was saved with {expected}")
    return damaged


def prunable(steps: Sequence[tuple[int, int]], keep_last: int, keep_every: int | None) -> list[int]:
    """Steps that may go, from `(step, tokens)` of the good checkpoints, oldest first.

    Kept are the newest `keep_last` (two at least) and the first in each stretch of `keep_every` tokens.
    """
    kept = {step for step, _ in steps[-max(keep_last, 2) :]}
    stretches = set()
    for step, tokens in steps:
        if keep_every and tokens // keep_every not in stretches:
            stretches.add(tokens // keep_every)
            kept.add(step)
    return [step for step, _ in steps if step not in kept]


class Saver:
    """Saves this rank's share and, on rank 0, commits and prunes."""

    def __init__(
        self,
        directory: Path,
        *,
        rank: int,
        world_size: int,
        keep_last: int,
        keep_every: int | None,
        asynchronous: bool,
        say: Callable[[str], None] = print,
        patience_s: float = 3600.0,
    ) -> None:
        """`patience_s`: how long rank 0 waits for the slowest rank's file."""
        self.directory = directory
        self.rank, self.world_size = rank, world_size
        self.keep_last, self.keep_every = keep_last, keep_every
        self.asynchronous = asynchronous
        self.say, self.patience_s = say, patience_s
        self.save_s = 0.0
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def prepare(self, step: int, needed: int) -> None:
        """On rank 0, before any rank writes: room on the disk and an empty directory.

        Raises:
            InfrastructureError: `needed` bytes do not fit.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise InfrastructureError(
                f"{self.directory}: a checkpoint needs {needed:,} bytes and {free:,} are free"
            )
        path = self.directory / name_of(step)
        if path.exists():
            self.say(f"{path}: left by a save that was cut short; written again")
            with contextlib.suppress(FileNotFoundError):
                (path / MARKER).unlink()
            shutil.rmtree(path)
        path.mkdir()
        _sync_directory(self.directory)

    def save(self, manifest: Manifest, fragments: Iterable[portable.Fragment]) -> None:
        """Writes this rank's fragments, at once or in the background; `prepare` came before on rank 0.

        `manifest` needs no files and weights yet. With `asynchronous` this returns after a snapshot.
        """
        started = time.monotonic()
        path = self.directory / name_of(manifest.step)
        mine = portable.snapshot(fragments) if self.asynchronous else list(fragments)

        def work() -> None:
            try:
                self._write(path, manifest, mine)
                self.save_s = time.monotonic() - started
            except Exception as error:
                self._failure = error
                with contextlib.suppress(OSError):
                    (path / f"rank-{self.rank:05d}.failed").write_text(str(error))

        if self.asynchronous:
            self._thread = threading.Thread(target=work, name="save", daemon=False)
            self._thread.start()
        else:
            work()

    def wait(self) -> str | None:
        """Ends the save under way; its failure in a line, or None."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        return None if failure is None else str(failure) or type(failure).__name__

    def last_good(self) -> str:
        """For messages: which checkpoint a restart would use."""
        good, _ = scan(self.directory)
        return f"last good checkpoint: {good[-1].path if good else 'none'}"

    def _write(self, path: Path, manifest: Manifest, fragments: Sequence[portable.Fragment]) -> None:
        file = path / f"rank-{self.rank:05d}.safetensors"
        written = portable.write(file, fragments)
        _write_synced(path / f"rank-{self.rank:05d}.json", json.dumps(asdict(written)))
        if self.rank == 0:
            self._commit(path, manifest)

    def _commit(self, path: Path, manifest: Manifest) -> None:
        """Rank 0: waits for every rank's signature, writes the marker, prunes."""
        shares = [self._signature(path, rank) for rank in range(self.world_size)]
        whole = asdict(manifest)
        whole["files"] = {share["file"]: (share["size"], share["checksum"]) for share in shares}
        whole["weights"] = portable.add_checksums(share["weights"] for share in shares)
        _write_synced(path / MARKER, json.dumps(whole))
        _sync_directory(self.directory)
        _write_synced(self.directory / HIGHEST, json.dumps({"step": manifest.step}))
        for share in range(self.world_size):
            (path / f"rank-{share:05d}.json").unlink()
        self._prune()

    def _signature(self, path: Path, rank: int) -> dict[str, Any]:
        deadline = time.monotonic() + self.patience_s
        signed, failed = path / f"rank-{rank:05d}.json", path / f"rank-{rank:05d}.failed"
        while not signed.exists():
            if failed.exists():
                raise InfrastructureError(f"{path}: rank {rank} could not write: {failed.read_text()}")
            if time.monotonic() > deadline:
                raise InfrastructureError(f"{path}: rank {rank} did not write within {self.patience_s:.0f} s")
            time.sleep(0.005)
        found: dict[str, Any] = json.loads(signed.read_text(encoding="utf-8"))
        return found

    def _prune(self) -> None:
        good, _ = scan(self.directory)
        steps = [(checkpoint.manifest.step, checkpoint.manifest.tokens) for checkpoint in good]
        for step in prunable(steps, self.keep_last, self.keep_every):
            path = self.directory / name_of(step)
            (path / MARKER).unlink()  # first, so that a half-removed one never counts
            _sync_directory(path)
            shutil.rmtree(path)


def _write_synced(path: Path, text: str) -> None:
    """The file appears under its name only when all of it is on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Makes new and removed names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
