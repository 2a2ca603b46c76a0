"""Checkpoints that are whole or do not count.

`step-00001000/` holds a file per rank and `manifest.json`, their sizes and checksums. It counts only
once `COMMITTED`, the manifest's own checksum, is there, which rank 0 writes last, after every rank
has written and synced its file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from tokenization import disk
from tokenization.errors import InfrastructureError
from trainer.storage.run_directory import LAST_COMMITTED

MANIFEST_VERSION = 1


MANIFEST = "manifest.json"


MARKER = "COMMITTED"
"""Holds the xxh3-128 of the manifest; a checkpoint without it does not count."""


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
    baseline: dict[str, Any]
    """The base's score on each validation set; see `trainer.evaluation.Baseline`."""
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
        return [self.path / name for name in sorted(self.manifest.files) if name.startswith("rank-")]


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a committed checkpoint and checks that its files have their sizes.

    Raises:
        InfrastructureError: not committed, manifest damaged, a file missing or of another size.
    """
    try:
        marker = (path / MARKER).read_bytes()
    except FileNotFoundError as error:
        raise InfrastructureError(f"{path}: was never committed (no {MARKER})") from error
    except OSError as error:
        raise InfrastructureError(f"{path / MARKER}: cannot be read ({error.strerror})") from error
    manifest = _manifest(path / MANIFEST, marker)
    for name, (size, _) in manifest.files.items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            raise InfrastructureError(f"{path / name}: cannot be read ({error.strerror})") from error
        if found != size:
            raise InfrastructureError(f"{path / name}: has {found} bytes, was saved with {size}")
    return Checkpoint(path, manifest)


def _manifest(file: Path, marker: bytes) -> Manifest:
    """The manifest, if it is the one that was committed."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InfrastructureError(f"{file}: cannot be read ({error.strerror})") from error
    found = xxhash.xxh3_128_hexdigest(text)
    if found.encode() != marker:
        expected = marker.decode("ascii", "replace")
        raise InfrastructureError(f"{file}: checksum {found}, was committed ({MARKER}) with {expected}")
    tree = json.loads(text)
    if tree["version"] != MANIFEST_VERSION:
        raise InfrastructureError(f"{file}: version {tree['version']}, this code reads {MANIFEST_VERSION}")
    tree["files"] = {name: (int(size), str(proof)) for name, (size, proof) in tree["files"].items()}
    return Manifest(**tree)


def commit_checkpoint(path: Path, manifest: Manifest) -> None:
    """Makes the checkpoint at `path`, whose files are all written and synced, count.

    Raises:
        InfrastructureError: a file is not what the manifest says.
        OSError: the disk is full or fails.
    """
    for name, (size, _) in manifest.files.items():
        if (found := (path / name).stat().st_size) != size:
            raise InfrastructureError(f"{path / name}: has {found} bytes, {size} were written")
    text = json.dumps(asdict(manifest))
    disk.write_atomically(path / MANIFEST, text)
    disk.sync_directory(path.parent)
    disk.write_atomically(path / MARKER, xxhash.xxh3_128_hexdigest(text.encode()))
    disk.write_atomically(path.parent.parent / LAST_COMMITTED, json.dumps({"step": manifest.step}))


def verify_checkpoint(checkpoint: Checkpoint, part: int = 0, parts: int = 1) -> list[str]:
    """Checksums this rank's `part` of the files; a line for each damaged one."""
    damaged = []
    for number, (name, (_, expected)) in enumerate(sorted(checkpoint.manifest.files.items())):
        if number % parts != part:
            continue
        path = checkpoint.path / name
        try:
            found = disk.checksum(path)
        except OSError as error:
            damaged.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if found != expected:
            damaged.append(f"{path}: checksum {found}, was saved with {expected}")
    return damaged
