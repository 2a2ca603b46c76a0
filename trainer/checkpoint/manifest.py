"""The manifest of a checkpoint: commit it, read it, verify the files that it lists.

A checkpoint is complete or does not count. `step-00001000/` holds the files of every rank, and
`manifest.json` with their sizes and checksums. The checkpoint counts only when `COMMITTED`, which holds
the checksum of the manifest, exists. Rank 0 writes it last, after every rank has synced its files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash
from pydantic import TypeAdapter

from tokenization import disk
from tokenization.errors import InfrastructureError, UserError
from trainer.storage.run_directory import RunDirectory

MANIFEST_VERSION = 1

MANIFEST = "manifest.json"

MARKER = "COMMITTED"
"""Holds the xxh3-128 of the manifest; a checkpoint without it does not count."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """What a rank knows of the run when it saves."""

    step: int
    tokens: int
    adam_step: int
    state: dict[str, Any]
    """Position and identity of the run; see `scheduler.state.RunState`."""
    world_size: int
    stage: int
    loss_scale: dict[str, float]
    baseline: dict[str, Any]
    """The base's score on each validation set; see `evaluation.held_out.Baseline`."""
    recipe: str
    """The resolved recipe."""
    versions: dict[str, str]

    @property
    def digest(self) -> str:
        """Checksum of everything that all ranks must agree on."""
        agreed = [self.step, self.tokens, self.adam_step, self.state]
        return xxhash.xxh3_128_hexdigest(json.dumps(agreed, sort_keys=True).encode())


@dataclass(frozen=True, kw_only=True)
class Manifest(Position):
    """The position of a committed checkpoint, and the checksums of its content."""

    version: int = MANIFEST_VERSION
    files: dict[str, tuple[int, str]]
    """File name to (bytes, xxh3-128)."""
    weights: dict[str, int]
    """Parameter to `rank_files.position_checksum`."""


_CHECKED: TypeAdapter[Manifest] = TypeAdapter(Manifest)


class Unreadable(str):
    """Why a file could not be read: the disk or the network failed, which may go away. Damage does not."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint on disk."""

    path: Path
    manifest: Manifest

    @property
    def files(self) -> list[Path]:
        """Paths of the ranks' files."""
        return [self.path / name for name in sorted(self.manifest.files) if name.startswith("rank-")]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a committed checkpoint, and check that its files have the recorded sizes.

    Raises:
        UserError: it was not committed, its manifest is damaged, or a file is missing or has another size.
        InfrastructureError: the disk or the network failed.
    """
    try:
        marker = (path / MARKER).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: was never committed (no {MARKER})") from error
    except OSError as error:
        raise _not_read(path / MARKER, error) from error
    manifest = _read_manifest(path / MANIFEST, marker)
    for name, (size, _) in manifest.files.items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            raise _not_read(path / name, error) from error
        if found != size:
            raise UserError(f"{path / name}: has {found} bytes, but was saved with {size}")
    return Checkpoint(path, manifest)


def _read_manifest(file: Path, marker: bytes) -> Manifest:
    """Read the manifest, and check that it is the one that was committed."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise _not_read(file, error) from error
    found = xxhash.xxh3_128_hexdigest(text)
    if found.encode() != marker:
        expected = marker.decode("ascii", "replace")
        raise UserError(f"{file}: has checksum {found}, but was committed ({MARKER}) with {expected}")
    try:
        tree = json.loads(text)
        version = tree.get("version") if isinstance(tree, dict) else None
        if version != MANIFEST_VERSION:
            raise UserError(f"{file}: has version {version!r}, but this code reads {MANIFEST_VERSION}")
        made: Manifest = _CHECKED.validate_python(tree)
    except (ValueError, RecursionError) as error:  # pydantic's errors, too
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: is not the manifest of a checkpoint ({reason})") from error
    if outside := [name for name in made.files if Path(name).name != name or name in ("", "..")]:
        raise UserError(f"{file}: lists files outside the checkpoint, such as {outside[0]!r}")
    return made


def _not_read(file: Path, error: OSError) -> UserError | InfrastructureError:
    """Make the error of a file that cannot be read: what is missing or forbidden does not come by itself."""
    line = f"{file}: cannot be read ({error.strerror})"
    lasting = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError))
    return UserError(line) if lasting else InfrastructureError(line)


def commit_checkpoint(path: Path, manifest: Manifest) -> None:
    """Commit the checkpoint at `path`, whose files are all written and synced.

    Raises:
        InfrastructureError: a file does not have the size that the manifest records.
        OSError: the disk is full or fails.
    """
    for name, (size, _) in manifest.files.items():
        if (found := (path / name).stat().st_size) != size:
            raise InfrastructureError(f"{path / name}: has {found} bytes, but {size} were written")
    text = json.dumps(asdict(manifest))
    disk.write_atomically(path / MANIFEST, text)
    disk.sync_path(path.parent)
    disk.write_atomically(path / MARKER, xxhash.xxh3_128_hexdigest(text.encode()))
    last_committed = RunDirectory(path.parent.parent).last_committed
    disk.write_atomically(last_committed, json.dumps({"step": manifest.step}))


def line_of(error: UserError | InfrastructureError) -> str:
    """Return the line of an error about a checkpoint; an `Unreadable` if it may go away."""
    return Unreadable(error) if isinstance(error, InfrastructureError) else str(error)


def verify_checkpoint(checkpoint: Checkpoint, part: int = 0, parts: int = 1) -> list[str]:
    """Check the checksums of this rank's `part` of the files; return a line for each damaged one.

    The line is an `Unreadable` if the disk or the network failed.
    """
    damaged = []
    for number, (name, (_, expected)) in enumerate(sorted(checkpoint.manifest.files.items())):
        if number % parts != part:
            continue
        path = checkpoint.path / name
        try:
            found = disk.checksum(path)
        except OSError as error:
            damaged.append(line_of(_not_read(path, error)))
            continue
        if found != expected:
            damaged.append(f"{path}: has checksum {found}, but was saved with {expected}")
    return damaged
