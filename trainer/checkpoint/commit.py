"""Checkpoints that are whole or do not count.

`step-00001000/` holds a file per rank and `manifest.json`, their sizes and checksums. It counts only
once `COMMITTED`, the manifest's own checksum, is there, which rank 0 writes last, after every rank
has written and synced its file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from trainer import disk
from trainer.errors import InfrastructureError

VERSION = 1

MANIFEST = "manifest.json"

MARKER = "COMMITTED"
"""Holds the xxh3-128 of the manifest; a checkpoint without it does not count."""

LAST = "last_committed.json"
"""Beside the checkpoints' directory: the newest committed step, by which a loss of all is noticed."""

_NAME = re.compile(r"step-(\d{8,})")


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


def name_of(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's directory name."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path} is not named as a checkpoint is")
    return int(found[1])


def listed(directory: Path) -> list[Path]:
    """Everything in `directory` that is named as a checkpoint is, oldest first.

    Raises:
        InfrastructureError: `directory` is there and cannot be read: that it holds nothing is not known.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not directory.is_symlink():
            return []
        raise InfrastructureError(f"{directory}: cannot be read ({error.strerror})") from error
    return sorted((directory / name for name in names if _NAME.fullmatch(name)), key=step_of)


def read(path: Path) -> Checkpoint:
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
    if tree["version"] != VERSION:
        raise InfrastructureError(f"{file}: version {tree['version']}, this code reads {VERSION}")
    tree["files"] = {name: (int(size), str(proof)) for name, (size, proof) in tree["files"].items()}
    return Manifest(**tree)


def commit(path: Path, manifest: Manifest) -> None:
    """Makes the checkpoint at `path`, whose files are all written and synced, count.

    Raises:
        InfrastructureError: a file is not what the manifest says.
        OSError: the disk is full or fails.
    """
    for name, (size, _) in manifest.files.items():
        if (found := (path / name).stat().st_size) != size:
            raise InfrastructureError(f"{path / name}: has {found} bytes, {size} were written")
    text = json.dumps(asdict(manifest))
    disk.write_text(path / MANIFEST, text)
    disk.sync_directory(path.parent)
    disk.write_text(path / MARKER, xxhash.xxh3_128_hexdigest(text.encode()))
    disk.write_text(path.parent.parent / LAST, json.dumps({"step": manifest.step}))


def scan(directory: Path) -> tuple[list[Checkpoint], list[str]]:
    """All good checkpoints, oldest first, and a line for each that is not (never deleted in silence).

    Raises:
        InfrastructureError: `directory` cannot be read.
    """
    good, broken = [], []
    paths = listed(directory)
    for path in paths:
        try:
            checkpoint = read(path)
            if path != directory / name_of(checkpoint.manifest.step):
                raise InfrastructureError(f"{path}: holds step {checkpoint.manifest.step}, is misnamed")
            good.append(checkpoint)
        except InfrastructureError as error:
            broken.append(str(error))
    last = last_committed(directory)
    if last is not None and directory / name_of(last) not in paths:
        broken.append(f"{directory / name_of(last)}: was committed and is gone")
    return good, broken


def last_committed(directory: Path) -> int | None:
    """The newest step that was ever committed here, as far as is known."""
    try:
        return int(json.loads((directory.parent / LAST).read_bytes())["step"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def has_committed(directory: Path) -> bool:
    """Whether a checkpoint was ever committed here, be it good or not."""
    known = os.path.lexists(directory.parent / LAST)
    return known or any(os.path.lexists(path / MARKER) for path in listed(directory))


def set_aside(directory: Path, step: int) -> list[str]:
    """Renames what is newer than `step`, which the run goes on from, to `damaged-…`; a line for each.

    Left where it is, it would come back into the history once it can be read again, and be counted
    among those that are kept. What was never committed is left: the next save clears it away.
    """
    lines = []
    for path in listed(directory):
        if step_of(path) <= step or _is_leftover(path):
            continue
        number = 0
        while os.path.lexists(aside := path.with_name(f"damaged-{path.name}" + f"-{number}" * bool(number))):
            number += 1
        try:
            path.rename(aside)
            lines.append(f"{path}: is not good, newer than the step {step} that is used: now {aside.name}")
        except OSError as error:
            lines.append(f"{path}: is not good and cannot be renamed ({error.strerror})")
    return lines


def _is_leftover(path: Path) -> bool:
    """Whether a save was cut short here: a directory that can be read and has no marker."""
    try:
        return not path.is_symlink() and MARKER not in os.listdir(path)
    except OSError:
        return False


def leftovers(directory: Path) -> list[Path]:
    """Directories of saves that were cut short."""
    return [path for path in listed(directory) if _is_leftover(path)]


def verify(checkpoint: Checkpoint, part: int = 0, parts: int = 1) -> list[str]:
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
