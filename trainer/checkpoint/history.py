"""The checkpoints of a run directory: list, scan, quarantine and prune them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint.manifest import (
    MARKER,
    Checkpoint,
    Unreadable,
    line_of,
    read_checkpoint,
    verify_checkpoint,
)
from trainer.storage.run_directory import RunDirectory

_NAME = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    """Return the directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's directory name."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path} does not have the name of a checkpoint")
    return int(found[1])


def list_checkpoints(directory: Path) -> list[Path]:
    """List everything in `directory` that has the name of a checkpoint, oldest first.

    Raises:
        UserError: `directory` is a file, or may not be read.
        InfrastructureError: it exists and cannot be read, so that it may hold checkpoints: a disk may not
            be mounted yet.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not directory.is_symlink():
            return []
        line = f"{directory}: cannot be read ({error.strerror})"
        lasting = isinstance(error, (NotADirectoryError, PermissionError))
        raise (UserError if lasting else InfrastructureError)(line) from error
    return sorted((directory / name for name in names if _NAME.fullmatch(name)), key=step_of)


def scan_checkpoints(directory: Path) -> tuple[list[Checkpoint], list[str]]:
    """Return all good checkpoints, oldest first, and a line for each that is not good.

    The line is an `Unreadable` if the disk or the network failed.

    Raises:
        UserError, InfrastructureError: as `list_checkpoints`.
    """
    good, broken = [], []
    paths = list_checkpoints(directory)
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
            if path != directory / name_of(checkpoint.manifest.step):
                raise UserError(f"{path}: holds step {checkpoint.manifest.step}, so its name is wrong")
            good.append(checkpoint)
        except (UserError, InfrastructureError) as error:
            broken.append(line_of(error))
    last = last_committed(directory)
    if last is not None and directory / name_of(last) not in paths:
        broken.append(f"{directory / name_of(last)}: was committed and is missing")
    return good, broken


def last_committed(directory: Path) -> int | None:
    """Return the newest step that was ever committed here; None if that is not known."""
    try:
        return int(json.loads(RunDirectory(directory.parent).last_committed.read_bytes())["step"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def has_committed(directory: Path) -> bool:
    """Tell whether a checkpoint was ever committed here, good or not."""
    known = os.path.lexists(RunDirectory(directory.parent).last_committed)
    return known or any(os.path.lexists(path / MARKER) for path in list_checkpoints(directory))


def quarantine(directory: Path, step: int) -> list[str]:
    """Rename checkpoints newer than `step`, which the run restores, to `damaged-…`; return a line for each.

    Otherwise one that becomes readable again would re-enter the history, and count among those to keep.
    Unfinished checkpoints stay: the next save removes them.
    """
    lines = []
    for path in list_checkpoints(directory):
        if step_of(path) <= step or _is_unfinished(path):
            continue
        number = 0
        while os.path.lexists(aside := path.with_name(f"damaged-{path.name}" + f"-{number}" * bool(number))):
            number += 1
        try:
            path.rename(aside)
            lines.append(
                f"{path}: damaged and newer than the checkpoint in use (step {step}); renamed to {aside.name}"
            )
        except OSError as error:
            lines.append(f"{path}: damaged, and cannot be renamed ({error.strerror})")
    return lines


def _is_unfinished(path: Path) -> bool:
    """Tell whether a save was interrupted here: a directory that can be read and has no marker."""
    try:
        return not path.is_symlink() and MARKER not in os.listdir(path)
    except OSError:
        return False


def unfinished(directory: Path) -> list[Path]:
    """List the directories of interrupted saves."""
    return [path for path in list_checkpoints(directory) if _is_unfinished(path)]


def to_prune(steps: Sequence[tuple[int, int]], keep_last: int, keep_every: int | None) -> list[int]:
    """Choose the steps to remove, from `(step, tokens)` of the good checkpoints, oldest first.

    The newest `keep_last` (at least two) are kept, and the first in each interval of `keep_every` tokens.
    """
    kept = {step for step, _ in steps[-max(keep_last, 2) :]}
    intervals = set()
    for step, tokens in steps:
        if keep_every and tokens // keep_every not in intervals:
            intervals.add(tokens // keep_every)
            kept.add(step)
    return [step for step, _ in steps if step not in kept]


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, or the newest good one of the run directory at `path`, verified.

    The folder `checkpoints` of a run may be given, too, wherever it was copied to.

    Raises:
        UserError: there is none, or it is damaged.
        InfrastructureError: the disk or the network failed.
    """
    if (path / MARKER).exists():
        checkpoint = read_checkpoint(path)
    else:
        copied = path.is_dir() and list_checkpoints(path)
        good, broken = scan_checkpoints(path if copied else RunDirectory(path).checkpoints)
        if not good:
            found = f" ({'; '.join(broken)})" if broken else ""
            beside = list_checkpoints(path.parent) if _NAME.fullmatch(path.name) else []
            kept = f", such as {', '.join(one.name for one in beside[-3:])} beside it" if beside else ""
            fix = f"give a run directory or a checkpoint{kept}"
            raise UserError(f"does not hold a committed checkpoint{found}", file=path, fix=fix)
        checkpoint = good[-1]
    raise_damage(verify_checkpoint(checkpoint))
    return checkpoint


def raise_damage(lines: Sequence[str], about: str = "", fix: str | None = None) -> None:
    """Raise what is wrong with checkpoints, if anything is: damage does not go away, a failing disk may.

    `about` precedes the lines, in brackets then.

    Raises:
        UserError: all of it is damage, or files that are missing.
        InfrastructureError: the disk or the network failed on one.
    """
    if not lines:
        return
    what = "; ".join(lines)
    error = UserError(f"{about} ({what})" if about else what, fix=fix)
    if any(isinstance(line, Unreadable) for line in lines):
        raise InfrastructureError(str(error))
    raise error
