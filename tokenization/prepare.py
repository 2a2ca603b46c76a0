"""A corpus becomes token shards: in parallel, in parts that a restart does not redo, all records counted.

The bytes of a part depend on the inputs and the options alone: not on the number of workers, on which parts
run where, or on how often the job was killed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np

from tokenization import bytelevel, documents, duplicates, encoder, records
from tokenization.encoding import Encoding, Tokens, run, tasks
from tokenization.errors import Problems, UserError
from tokenization.inputs import find
from tokenization.jobs import Job, PartCounts, Prepared
from tokenization.progress import Meter
from tokenization.rejects import Limit, Rejects, mend
from tokenization.shard_format import ShardMeta, beside, disk, write_atomically
from tokenization.shards import ShardWriter, open_tokens, token_dtype
from tokenization.streams import check_encoding
from tokenization.tokenizer_files import open_tokenizer

PART_BYTES = 1 << 30
MAX_PARTS = 128
_LONGEST_NAME = 200
"""Bytes that leave room for what is added to the name of a shard's prefix."""
_SAMPLE_SLICES, _SAMPLE_BYTES = 32, 1 << 18


def prepare(
    inputs: Sequence[str | Path],
    tokenizer: str | Path,
    out: str | Path,
    *,
    text_field: str = "text",
    txt: documents.TxtDocuments = "file",
    encoding: str = "utf-8",
    workers: int = 1,
    part: tuple[int, int] | None = None,
    validation: Fraction | float = 0,
    dedup: bool = False,
    max_rejects: Limit = None,
    engine: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Prepared:
    """Write the documents of `inputs` as token shards at the prefix `out`.

    `part` is (I, N), I from 1: do the I-th of N parts, for job arrays. Without it all parts are done, and
    their number follows from the size of the inputs. `validation` is the share of documents, chosen by their
    hash, that go to the prefix `out`-validation instead. `dedup` keeps the first of equal documents. `txt`
    says what a document of a `.txt` is; `.txt` and `.jsonl` files that are not UTF-8 are read in `encoding`.
    A part ends the job if more than `max_rejects` of its records, or that share of them, are no documents,
    empty ones aside. A part that was finished before is kept, unless `overwrite`.

    Raises:
        UserError: an input or an option is wrong, or `out` holds the shards of another job.
        InfrastructureError: the disk failed or a worker was killed.
    """
    began = time.monotonic()
    _check(workers, part, validation, max_rejects)
    _check_out(str(out))
    format = documents.Format(text_field, txt, check_encoding(encoding))
    found = find(inputs, text_field, format.encoding)
    slices = documents.cut(found.files, format)
    total = sum(piece.size for piece in slices)
    parts = part[1] if part else min(max(1, math.ceil(total / PART_BYTES)), MAX_PARTS)
    share = Fraction(str(validation)) if isinstance(validation, float) else Fraction(validation)
    job = Job(Path(out), open_tokenizer(tokenizer), format, slices, parts, share, dedup)
    wanted = [part[0] - 1] if part else list(range(parts))
    if overwrite:
        whole = [job.out, Path(f"{job.out}-validation")]
        mine = [prefix for index in wanted for prefix in (job.prefix(index), job.validation_prefix(index))]
        _clear(mine if part else whole)
    _hold_apart(job, part)
    identity = job.identity
    if not overwrite:
        _refuse_other_jobs(job, identity, wanted)
    done = {} if overwrite else _finished(job, identity, wanted)
    notes = [found.left_out] if found.left_out else []
    result = Prepared(str(out), parts, finished_before=len(done), validation=share > 0, notes=notes)
    for counts in done.values():
        result.add(counts)
    if todo := [index for index in wanted if index not in done]:
        _prepare_parts(job, identity, todo, result, workers, max_rejects, engine, progress)
    if dedup and part is None:
        duplicates.forget(job)
    if len(wanted) == parts:
        _refuse_empty(inputs, result)
    result.seconds = time.monotonic() - began
    return result


def parse_part(text: str) -> tuple[int, int]:
    """`I/N` as (I, N), I from 1.

    Raises:
        UserError: it is not that.
    """
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UserError("is not I/N with 1 ≤ I ≤ N", field="--part", value=text, mend="write it like 3/8")
    return int(number), int(count)


def _check(
    workers: int, part: tuple[int, int] | None, validation: Fraction | float, max_rejects: Limit
) -> None:
    problems = []
    if workers < 1:
        problems.append(UserError("is not at least 1", field="--workers", value=workers))
    if part is not None and not 1 <= part[0] <= part[1] <= 99999:
        problems.append(UserError("is not I/N with 1 ≤ I ≤ N", field="--part", value=f"{part[0]}/{part[1]}"))
    if not 0 <= validation < 1:
        problems.append(
            UserError(
                "is not a share from 0 to below 1",
                field="--validation",
                value=str(validation),
                mend="write it like 0.5%",
            )
        )
    if max_rejects is not None and max_rejects < 0:
        problems.append(UserError("is negative", field="--max-rejects", value=str(max_rejects)))
    if problems:
        raise Problems(problems)


def _check_out(out: str) -> None:
    """Refuse a prefix that names no files, or none that can be made.

    Raises:
        UserError: it ends with a folder, or lies below a file.
    """
    name = os.path.basename(out.rstrip("/"))
    if name in ("", ".", ".."):
        mend = "add a name, which the shard's files begin with: --out data/zh"
        raise UserError("is a folder's name and not a prefix of files", field="--out", value=out, mend=mend)
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise UserError(f"has a name of more than {_LONGEST_NAME} bytes", field="--out", value=out)
    above = next(folder for folder in Path(out).absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"lies below {above}, which is a file", field="--out", value=out)


def _refuse_empty(inputs: Sequence[str | Path], result: Prepared) -> None:
    """Refuse inputs that have given no document, with the reason of most of their records."""
    if result.documents + result.validation_documents:
        return
    why = "".join(f" ({count:,}: {reason})" for reason, count in result.rejects.items())
    most = max(result.rejects, key=lambda reason: result.rejects[reason], default="")
    advice = mend(most, "the .rejects.jsonl beside --out") if most else "name files that hold text"
    raise UserError(f"has no document{why}", file=", ".join(map(str, inputs)), mend=advice)


def _sample(slices: Sequence[documents.Slice], format: documents.Format) -> list[str]:
    """Texts from places spread over the corpus, for choosing the encoder."""
    chosen = slices[:: max(1, len(slices) // _SAMPLE_SLICES)][:_SAMPLE_SLICES]
    found: list[str] = []
    for piece in chosen:
        size = _SAMPLE_BYTES // len(chosen)
        block = next(documents.blocks([piece], format, size), None)
        if block is not None:
            for text in records.read(documents.beginning(block, size), format).texts:
                if size > 0:
                    found.append(text[:size])
                    size -= len(text.encode())
    return found


def _prepare_parts(
    job: Job,
    identity: str,
    todo: Sequence[int],
    result: Prepared,
    workers: int,
    max_rejects: Limit,
    engine: str | None,
    progress: bool,
) -> None:
    """Choose the encoder, find duplicates if asked, do the parts, and count them into `result`."""
    choice = encoder.choose(job.tokenizer, _sample(job.slices, job.format), only=engine)
    result.engine, result.notes = choice.engine.name, [*result.notes, *choice.dropped]
    tokenizer = job.tokenizer
    encode = Encoding(
        job.format,
        choice.engine,
        tokenizer.eos_id,
        token_dtype(tokenizer.size),
        job.validation,
        bytelevel.missing_bytes(tokenizer),
        bytelevel.unknown_id(tokenizer),
    )
    if bytelevel.drops_characters(tokenizer):
        result.notes.append(
            f"warning: {tokenizer.path} has no byte fallback and no unknown token: characters without a piece"
            " vanish, and are not counted"
        )
    drop = duplicates.find(job, identity, workers) if job.dedup else None
    weight = sum(piece.size for index in todo for piece in job.part(index))
    with Meter(weight, shown=progress) as meter:
        for index in todo:
            result.add(_prepare_part(job, identity, index, encode, workers, drop, max_rejects, meter))


def _prepare_part(
    job: Job,
    identity: str,
    index: int,
    encode: Encoding,
    workers: int,
    drop: duplicates.Duplicates | None,
    max_rejects: Limit,
    meter: Meter,
) -> PartCounts:
    counts = PartCounts(identity, facts=job.facts)
    _write_counts(job, index, counts)
    rejects = Rejects(job.prefix(index), max_rejects, job.format.encoding)
    todo = tasks(documents.blocks(job.part(index), job.format))
    with contextlib.ExitStack() as opened:
        train = opened.enter_context(_writer(job, identity, encode, job.prefix(index)))
        held_out = (
            opened.enter_context(_writer(job, identity, encode, job.validation_prefix(index)))
            if job.validation
            else None
        )
        made = opened.enter_context(contextlib.closing(run(encode, todo, workers)))
        seen = 0
        for tokens in made:
            keep = np.ones(tokens.lengths.size, dtype=bool)
            if drop is not None:
                keep = ~drop.among(index, seen, keep.size)
            seen += keep.size
            _add(train, tokens, keep & ~tokens.validation)
            if held_out is not None:
                _add(held_out, tokens, keep & tokens.validation)
            counts.duplicates += int(keep.size - keep.sum())
            rejects.add(keep.size, tokens.rejects)
            counts.lost = dict(Counter(counts.lost) + Counter(tokens.lost))
            meter.add(tokens.weight, int(tokens.sizes.sum()), tokens.ids.size)
        rejects.add(0, [], finished=True)
    counts.documents, counts.tokens, counts.utf8_bytes = train.documents, train.tokens, train.utf8_bytes
    if held_out is not None:
        counts.validation_documents, counts.validation_tokens = held_out.documents, held_out.tokens
    counts.rejects, counts.reject_files = rejects.close(), rejects.left_out.files
    counts.finished = True
    _write_counts(job, index, counts)
    return counts


def _writer(job: Job, identity: str, encode: Encoding, prefix: Path) -> ShardWriter:
    return ShardWriter(
        prefix,
        vocab_size=job.tokenizer.size,
        tokenizer=job.tokenizer.fingerprint,
        eos_id=encode.eos_id,
        job=identity,
    )


def _add(writer: ShardWriter, tokens: Tokens, which: np.ndarray) -> None:
    if which.all():
        writer.add_documents(tokens.ids, tokens.lengths, int(tokens.sizes.sum()))
    elif which.any():
        ids = tokens.ids[np.repeat(which, tokens.lengths)]
        writer.add_documents(ids, tokens.lengths[which], int(tokens.sizes[which].sum()))


def _write_counts(job: Job, index: int, counts: PartCounts) -> None:
    path = job.counts_path(index)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(counts), indent=2, ensure_ascii=False) + "\n")


def _hold_apart(job: Job, part: tuple[int, int] | None) -> None:
    """Refuse to write beside shards of another number of parts, which --overwrite removes only for all parts.

    Raises:
        UserError: there are some at the prefix.
    """
    for name, parts in _shards_at(job.out):
        if name.endswith((".bin", ".idx")) and parts != job.parts:
            mend = "remove their .bin, .idx and .json, or choose another --out"
            raise UserError(
                f"holds {parts} part(s) where {job.parts} are to be written ({name} is one)",
                file=job.out,
                mend=mend if part else f"{mend}, or give --overwrite",
            )


def _refuse_other_jobs(job: Job, identity: str, wanted: Sequence[int]) -> None:
    """Refuse to add a part to those of another job: a task of an array may find other files than the first.

    Raises:
        UserError: there is a part of another job.
    """
    for index in sorted({*range(job.parts)} - {*wanted}):
        counts = _counted(job.counts_path(index))
        if counts is not None and counts.job != identity:
            differs = ", ".join(
                name for name, fact in job.facts.items() if counts.facts.get(name, fact) != fact
            )
            raise UserError(
                f"is a part of another job: {differs or 'its inputs, tokenizer or options'} differ",
                file=job.counts_path(index),
                mend="start every part on the same files with the same options; choose another --out, or give"
                " --overwrite to every part",
            )


def _clear(prefixes: Sequence[Path]) -> None:
    """Remove every shard at the prefixes."""
    for prefix in prefixes:
        for name, _ in _shards_at(prefix):
            (prefix.parent / name).unlink(missing_ok=True)


def _shards_at(prefix: Path) -> list[tuple[str, int]]:
    """The names of the files of shards at a prefix, and of how many parts each is."""
    pattern = re.compile(
        re.escape(prefix.name)
        + r"(?:-\d{5}-of-(\d{5}))?(?:\.json|\.bin|\.idx|\.prepared\.json|\.rejects\.jsonl)"
    )
    names = sorted(os.listdir(prefix.parent)) if prefix.parent.is_dir() else []
    return [(name, int(match[1] or 1)) for name in names if (match := pattern.fullmatch(name))]


def _finished(job: Job, identity: str, wanted: Sequence[int]) -> dict[int, PartCounts]:
    """The wanted parts that an earlier start of this very job has finished.

    Raises:
        UserError: shards of another job are in the way.
    """
    done = {}
    for index in wanted:
        shards = [job.prefix(index), *([job.validation_prefix(index)] if job.validation else [])]
        sides = [beside(prefix, ".json") for prefix in shards]
        counts = _counted(job.counts_path(index))
        if counts is None or not _is_this(job, identity, counts, shards):
            if found := [side for side in sides if side.is_file()]:
                raise UserError(
                    "is the shard of another job: its inputs, tokenizer or options were not these",
                    file=found[0],
                    mend="choose another --out, or give --overwrite",
                )
        elif counts.finished and all(map(_is_whole, shards)):
            done[index] = counts
    return done


def _is_this(job: Job, identity: str, counts: PartCounts, shards: Sequence[Path]) -> bool:
    """Whether a part is of this very job, as it is told now or as an earlier rewarm told it."""
    if counts.job == identity:
        return True
    if counts.job != job.earlier_identity:
        return False
    with contextlib.suppress(UserError):
        return all(ShardMeta.read(shard).eos_id == job.tokenizer.eos_id for shard in shards)
    return not counts.finished


def _counted(path: Path) -> PartCounts | None:
    """What an earlier start has written down about a part; None if there is nothing that can be read."""
    try:
        return PartCounts(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _is_whole(prefix: Path) -> bool:
    """Whether a shard is there with all of its files, each of the size that the side file tells."""
    try:
        open_tokens(prefix)
    except UserError:
        return False
    return True
