"""The checkpoints of a run directory: list, scan, quarantine and prune them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint.manifest import MARKER, Checkpoint, read_checkpoint, verify_checkpoint
from trainer.storage.run_directory import LAST_COMMITTED

_NAME = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's directory name."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path} is not named as a checkpoint is")
    return int(found[1])


def list_checkpoints(directory: Path) -> list[Path]:
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


def scan_checkpoints(directory: Path) -> tuple[list[Checkpoint], list[str]]:
    """All good checkpoints, oldest first, and a line for each that is not (never deleted in silence).

    Raises:
        InfrastructureError: `directory` cannot be read.
    """
    good, broken = [], []
    paths = list_checkpoints(directory)
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
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
        return int(json.loads((directory.parent / LAST_COMMITTED).read_bytes())["step"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def has_committed(directory: Path) -> bool:
    """Whether a checkpoint was ever committed here, be it good or not."""
    known = os.path.lexists(directory.parent / LAST_COMMITTED)
    return known or any(os.path.lexists(path / MARKER) for path in list_checkpoints(directory))


def quarantine(directory: Path, step: int) -> list[str]:
    """Renames what is newer than `step`, which the run goes on from, to `damaged-…`; a line for each.

    Left where it is, it would come back into the history once it can be read again, and be counted
    among those that are kept. What was never committed is left: the next save clears it away.
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
            lines.append(f"{path}: is not good, newer than the step {step} that is used: now {aside.name}")
        except OSError as error:
            lines.append(f"{path}: is not good and cannot be renamed ({error.strerror})")
    return lines


def _is_unfinished(path: Path) -> bool:
    """Whether a save was cut short here: a directory that can be read and has no marker."""
    try:
        return not path.is_symlink() and MARKER not in os.listdir(path)
    except OSError:
        return False


def unfinished(directory: Path) -> list[Path]:
    """Directories of saves that were cut short."""
    return [path for path in list_checkpoints(directory) if _is_unfinished(path)]


def to_prune(steps: Sequence[tuple[int, int]], keep_last: int, keep_every: int | None) -> list[int]:
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


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest good one of the run directory at `path`, verified.

    Raises:
        UserError: there is none.
        InfrastructureError: the one that is meant is damaged.
    """
    if (path / MARKER).exists():
        checkpoint = read_checkpoint(path)
    else:
        good, broken = scan_checkpoints(path / "checkpoints")
        if not good:
            found = f" ({'; '.join(broken)})" if broken else ""
            raise UserError(
                f"holds no committed checkpoint{found}",
                file=path,
                fix="give a run directory or a checkpoint",
            )
        checkpoint = good[-1]
    damaged = verify_checkpoint(checkpoint)
    if damaged:
        raise InfrastructureError("; ".join(damaged))
    return checkpoint
