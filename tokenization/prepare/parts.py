"""The parts of a job on the disk: finished ones are kept, and shards of other jobs are refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenization.disk import disk_errors, with_ending, write_atomically
from tokenization.errors import UserError
from tokenization.prepare.job import Job, PartCounts
from tokenization.shards.format import ShardMeta
from tokenization.shards.store import open_tokens


def finished_parts(job: Job, wanted: Sequence[int], *, overwrite: bool) -> dict[int, PartCounts]:
    """Return the `wanted` parts that an earlier start has finished; with `overwrite`, remove them all.

    Raises:
        UserError: there are shards of another job, or of another number of parts.
    """
    if overwrite and len(wanted) == job.parts:
        _clear([job.out, Path(f"{job.out}-validation")])
    elif overwrite:
        _clear([prefix for index in wanted for prefix in (job.prefix(index), job.validation_prefix(index))])
    _refuse_other_parts(job, wanted)
    if overwrite:
        return {}
    _refuse_other_jobs(job, wanted)
    return _finished(job, wanted)


def write_counts(job: Job, index: int, counts: PartCounts) -> None:
    """Write the counts of a part.

    Raises:
        InfrastructureError: the disk is full or fails.
    """
    path = job.counts_path(index)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(counts), indent=2, ensure_ascii=False) + "\n")


def _refuse_other_parts(job: Job, wanted: Sequence[int]) -> None:
    """Refuse to write if there are shards of another number of parts, which only a whole job overwrites.

    Raises:
        UserError: there are such shards at the prefix.
    """
    for name, parts in _shards_at(job.out):
        if name.endswith((".bin", ".idx")) and parts != job.parts:
            fix = "remove their .bin, .idx and .json, or choose another --out"
            raise UserError(
                f"holds {parts} part(s) where {job.parts} are to be written ({name} is one)",
                file=job.out,
                fix=fix if len(wanted) < job.parts else f"{fix}, or give --overwrite",
            )


def _refuse_other_jobs(job: Job, wanted: Sequence[int]) -> None:
    """Refuse to add a part to those of another job, which may have found other files.

    Raises:
        UserError: there is a part of another job.
    """
    for index in sorted({*range(job.parts)} - {*wanted}):
        counts = _counted(job.counts_path(index))
        if counts is not None and counts.job != job.identity:
            raise UserError(
                f"is a part of another job, which differs in {_differences(job, counts)}",
                file=job.counts_path(index),
                fix="start every part with the same files and options; choose another --out, or give"
                " --overwrite to every part",
            )


def _differences(job: Job, counts: PartCounts | None) -> str:
    """Name the facts in which `job` differs from the job that has written a part, if they are known."""
    written = {} if counts is None else counts.facts
    differs = [name for name, fact in job.facts.items() if written.get(name, fact) != fact]
    return ", ".join(differs) or "its inputs, tokenizer or options"


def _clear(prefixes: Sequence[Path]) -> None:
    """Remove every shard at the prefixes."""
    for prefix in prefixes:
        for name, _ in _shards_at(prefix):
            (prefix.parent / name).unlink(missing_ok=True)


def _shards_at(prefix: Path) -> list[tuple[str, int]]:
    """Return the names of the files of shards at a prefix, each with its number of parts."""
    pattern = re.compile(
        re.escape(prefix.name)
        + r"(?:-\d{5}-of-(\d{5}))?(?:\.json|\.bin|\.idx|\.prepared\.json|\.rejects\.jsonl)"
    )
    names = sorted(os.listdir(prefix.parent)) if prefix.parent.is_dir() else []
    return [(name, int(match[1] or 1)) for name in names if (match := pattern.fullmatch(name))]


def _finished(job: Job, wanted: Sequence[int]) -> dict[int, PartCounts]:
    """Return the wanted parts that an earlier start of this job has finished.

    Raises:
        UserError: there are shards of another job.
    """
    done = {}
    for index in wanted:
        shards = [job.prefix(index), *([job.validation_prefix(index)] if job.validation else [])]
        sides = [with_ending(prefix, ".json") for prefix in shards]
        counts = _counted(job.counts_path(index))
        if counts is None or not _is_this(job, counts, shards):
            if found := [side for side in sides if side.is_file()]:
                raise UserError(
                    f"was written by another job, which differs in {_differences(job, counts)}",
                    file=found[0],
                    fix="choose another --out, or give --overwrite",
                )
        elif counts.finished and all(map(_is_whole, shards)):
            done[index] = counts
    return done


def _is_this(job: Job, counts: PartCounts, shards: Sequence[Path]) -> bool:
    """Return whether a part is of this job, by its identity or by that of an earlier version."""
    if counts.job == job.identity:
        return True
    if counts.job != job.earlier_identity:
        return False
    with contextlib.suppress(UserError):
        return all(ShardMeta.read(shard).eos_id == job.tokenizer.eos_id for shard in shards)
    return not counts.finished


def _counted(path: Path) -> PartCounts | None:
    """Read the counts of a part; None if its file cannot be read."""
    try:
        return PartCounts(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _is_whole(prefix: Path) -> bool:
    """Return whether all files of a shard exist and have the sizes in the side file."""
    try:
        open_tokens(prefix)
    except UserError:
        return False
    return True
