"""Turn a corpus into token shards: in parallel, in parts that a restart does not repeat, with all counts.

The bytes of a part depend only on the inputs and the options: not on the number of workers, the machine of
each part, or the number of restarts.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from tokenization.errors import UserError, UserErrors
from tokenization.prepare import duplicates
from tokenization.prepare.clean import write_clean
from tokenization.prepare.job import Job, PartCounts, PrepareResult
from tokenization.prepare.overlap import find_overlap
from tokenization.prepare.parts import finished_parts, write_counts
from tokenization.prepare.progress import Meter
from tokenization.prepare.workers import EncodedDocuments, Encoding, map_in_workers, tasks
from tokenization.shards.format import token_dtype
from tokenization.shards.writer import ShardWriter
from tokenization.text import documents, records
from tokenization.text.hub import is_hub_split
from tokenization.text.inputs import find_files
from tokenization.text.rejects import Limit, Rejects, fix
from tokenization.text.streams import check_encoding
from tokenization.tokenizer import byte_level, encoder
from tokenization.tokenizer.files import open_tokenizer

PART_BYTES = 1 << 30

MAX_PARTS = 128

_LONGEST_NAME = 200
"""Bytes of a prefix's name; endings of shards are added to it."""

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
    clean: bool = False,
    dedup: bool = False,
    max_rejects: Limit = None,
    engine: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PrepareResult:
    """Write the documents of `inputs` as token shards at the prefix `out`: of files, then of the hub.

    `part` is (I, N), I from 1: do the I-th of N parts, for job arrays. Without it all parts are done, and
    their number follows from the size of the inputs. `validation` is the share of documents, chosen by their
    hash, that go to the prefix `out`-validation instead; with `clean` those of them that are not trained on,
    not even in part, are written to `out`-validation-clean, too. `dedup` keeps the first of equal documents.
    `txt` says what a document of a `.txt` is; files that are not UTF-8 are read in `encoding`.
    The job stops if more than `max_rejects` records of a part, or that share of them, are not documents;
    empty records do not count. A part that was finished before is kept, unless `overwrite`.

    Raises:
        UserError: an input or an option is wrong, or `out` holds the shards of another job.
        InfrastructureError: the disk or the hub failed, or a worker was killed.
    """
    began = time.monotonic()
    _check(workers, part, validation, clean, max_rejects)
    _check_out(str(out))
    format = documents.DocumentFormat(text_field, txt, check_encoding(encoding))
    slices, notes = _slices(inputs, format)
    total = sum(piece.size for piece in slices)
    parts = part[1] if part else min(max(1, math.ceil(total / PART_BYTES)), MAX_PARTS)
    share = Fraction(str(validation)) if isinstance(validation, float) else Fraction(validation)
    job = Job(Path(out), open_tokenizer(tokenizer), format, slices, parts, share, dedup)
    wanted = [part[0] - 1] if part else list(range(parts))
    done = finished_parts(job, wanted, overwrite=overwrite)
    one = part and part[0]
    result = PrepareResult(
        out=str(out), parts=parts, part=one, finished_before=len(done), validation=share > 0, notes=notes
    )
    for counts in done.values():
        result += counts
    if todo := [index for index in wanted if index not in done]:
        _prepare_parts(job, todo, result, workers, max_rejects, engine, progress)
    if dedup and part is None:
        duplicates.remove_cache(job)
    if len(wanted) == parts:
        _refuse_empty(inputs, result)
    if clean:
        result.notes += _clean(job, workers, overwrite=overwrite)
    result.seconds = time.monotonic() - began
    return result


def _slices(
    inputs: Sequence[str | Path], format: documents.DocumentFormat
) -> tuple[list[documents.Slice], list[str]]:
    """Return the slices of the files, then those of the hub, and a line for what is left out or pinned."""
    streams = [str(one) for one in inputs if is_hub_split(one)]
    found = find_files([one for one in inputs if not is_hub_split(one)], format.text_field, format.encoding)
    streamed = documents.hub_slices(streams, format)
    read = dict.fromkeys(piece.path.rpartition("#")[0] for piece in streamed)
    notes = [*filter(None, [found.left_out]), *(f"read {split}" for split in read)]
    return documents.cut_slices(found.files, format) + streamed, notes


def _clean(job: Job, workers: int, *, overwrite: bool) -> list[str]:
    """Write the validation documents that are not trained on at a prefix of their own; say what was found."""
    found = find_overlap([job.out], [f"{job.out}-validation"], workers=workers)
    return [
        *(overlap.to_text(most=5) for overlap in found),
        *(
            f"{write_clean(overlap, job.tokenizer, job=job.identity, overwrite=overwrite)}: the "
            f"{overlap.documents - len(overlap.found):,} documents that are not trained on"
            for overlap in found
        ),
    ]


def _check(
    workers: int,
    part: tuple[int, int] | None,
    validation: Fraction | float,
    clean: bool,
    max_rejects: Limit,
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
                fix="write it like 0.5%",
            )
        )
    if clean and (part is not None or not validation):
        what = "has no effect with --part" if validation else "has no effect without --validation"
        fix = "run `rewarm data overlap --write-clean` when all parts are there" if validation else "add it"
        problems.append(UserError(what, field="--clean-validation", fix=fix))
    if max_rejects is not None and max_rejects < 0:
        problems.append(UserError("is negative", field="--max-rejects", value=str(max_rejects)))
    if problems:
        raise UserErrors(problems)


def _check_out(out: str) -> None:
    """Refuse a prefix without a file name, or one that cannot be created.

    Raises:
        UserError: it is a folder, or a parent path is a file.
    """
    name = os.path.basename(out.rstrip("/"))
    if name in ("", ".", ".."):
        fix = "add a name with which the files of the shard begin: --out data/zh"
        raise UserError("is the name of a folder, not a prefix of files", field="--out", value=out, fix=fix)
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise UserError(f"has a name of more than {_LONGEST_NAME} bytes", field="--out", value=out)
    above = next(folder for folder in Path(out).absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"cannot be created: its parent path {above} is a file", field="--out", value=out)


def _refuse_empty(inputs: Sequence[str | Path], result: PrepareResult) -> None:
    """Refuse inputs that gave no document, with the most frequent reason."""
    if result.documents + result.validation_documents:
        return
    why = "".join(f" ({count:,}: {reason})" for reason, count in result.rejects.items())
    most = max(result.rejects, key=lambda reason: result.rejects[reason], default="")
    advice = fix(most, "the .rejects.jsonl of --out") if most else "name files that hold text"
    raise UserError(f"has no document{why}", file=", ".join(map(str, inputs)), fix=advice)


def _sample(slices: Sequence[documents.Slice], format: documents.DocumentFormat) -> list[str]:
    """Return texts from places spread over the corpus, for choosing the encoder."""
    chosen = slices[:: max(1, len(slices) // _SAMPLE_SLICES)][:_SAMPLE_SLICES]
    found: list[str] = []
    for piece in chosen:
        size = _SAMPLE_BYTES // len(chosen)
        block = next(documents.blocks([piece], format, size), None)
        if block is not None:
            for text in records.read_records(documents.beginning(block, size), format).texts:
                if size > 0:
                    found.append(text[:size])
                    size -= len(text.encode())
    return found


def _prepare_parts(
    job: Job,
    todo: Sequence[int],
    result: PrepareResult,
    workers: int,
    max_rejects: Limit,
    engine: str | None,
    progress: bool,
) -> None:
    """Choose the encoder, find duplicates if the job removes them, prepare the parts and add their counts."""
    choice = encoder.choose_engine(job.tokenizer, _sample(job.slices, job.format), only=engine)
    result.engine, result.notes = choice.engine.name, [*result.notes, *choice.dropped]
    tokenizer = job.tokenizer
    encode = Encoding(
        job.format,
        choice.engine,
        tokenizer.eos_id,
        token_dtype(tokenizer.size),
        job.validation,
        byte_level.missing_bytes(tokenizer),
        byte_level.unknown_id(tokenizer),
    )
    if byte_level.drops_characters(tokenizer):
        result.notes.append(
            f"warning: {tokenizer.path} has no byte fallback and no unknown token: characters without a piece"
            " are lost, and are not counted"
        )
    drop = duplicates.find_duplicates(job, workers) if job.dedup else None
    weight = sum(piece.size for index in todo for piece in job.part(index))
    with Meter(weight, shown=progress) as meter:
        for index in todo:
            result += _prepare_part(job, index, encode, workers, drop, max_rejects, meter)


def _prepare_part(
    job: Job,
    index: int,
    encode: Encoding,
    workers: int,
    drop: duplicates.Duplicates | None,
    max_rejects: Limit,
    meter: Meter,
) -> PartCounts:
    counts = PartCounts(job=job.identity, facts=job.facts)
    write_counts(job, index, counts)
    rejects = Rejects(job.prefix(index), max_rejects, job.format.encoding)
    todo = tasks(documents.blocks(job.part(index), job.format))
    with contextlib.ExitStack() as opened:
        train = opened.enter_context(_writer(job, encode, job.prefix(index)))
        held_out = (
            opened.enter_context(_writer(job, encode, job.validation_prefix(index)))
            if job.validation
            else None
        )
        made = opened.enter_context(contextlib.closing(map_in_workers(encode, todo, workers)))
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
    write_counts(job, index, counts)
    return counts


def _writer(job: Job, encode: Encoding, prefix: Path) -> ShardWriter:
    return ShardWriter(
        prefix,
        vocab_size=job.tokenizer.size,
        tokenizer=job.tokenizer.fingerprint,
        eos_id=encode.eos_id,
        job=job.identity,
    )


def _add(writer: ShardWriter, tokens: EncodedDocuments, which: np.ndarray) -> None:
    if which.all():
        writer.add_documents(tokens.ids, tokens.lengths, int(tokens.sizes.sum()))
    elif which.any():
        ids = tokens.ids[np.repeat(which, tokens.lengths)]
        writer.add_documents(ids, tokens.lengths[which], int(tokens.sizes[which].sum()))
