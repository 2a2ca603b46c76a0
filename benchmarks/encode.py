"""From text to token shards: rewarm, SentencePiece, Hugging Face and Megatron-LM's way on the same text.

    python benchmarks/encode.py --tokenizer runs/quickstart/tokenizers/extended \\
        --text English=runs/quickstart/text/english-train.jsonl \\
        --text Chinese=runs/quickstart/text/chinese-train.jsonl --out encode.json

Every row runs in a fresh process with the same number of processes or threads. rewarm's row is the whole of
`data prepare`: planning, choosing and proving the encoder, reading, encoding, writing, and syncing the disk.
SentencePiece and Hugging Face get their text in memory and write nothing. Megatron-LM's way is its
`preprocess_data.py`: a pool of workers that parse and encode one document at a time, and megatron-core's
index builder; its shard must equal rewarm's byte for byte, and every document's ids SentencePiece's.

A text with too few documents is repeated with its clauses drawn again, so that no document comes
twice and an engine that remembers whole documents gains nothing by it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_CLAUSE = re.compile(r"[^，。；：、,.;:]+[，。；：、,.;:]*|[，。；：、,.;:]+")
PACKAGES = ("sentencepiece", "tokenizers", "transformers", "gigatoken", "megatron-core", "numpy")


@dataclass(frozen=True)
class Row:
    """One way to encode one text."""

    text: str
    name: str
    seconds: float
    mb_per_s: float
    ratio: float
    """rewarm's MB/s over this row's."""
    peak_mb: float
    """Resident memory of the process and all its workers at their peaks."""
    tokens: int


@dataclass(frozen=True)
class Case:
    """What every row gets."""

    jsonl: Path
    tokenizer: Path
    workers: int
    folder: Path


def rewarm(case: Case) -> tuple[float, int]:
    from tokenization.prepare.prepare import prepare

    made = prepare(
        [case.jsonl],
        case.tokenizer,
        case.folder / "rewarm",
        workers=case.workers,
        progress=False,
        max_rejects=0,
    )
    print(f"  rewarm encoded with {made.engine}", *made.notes, sep="\n  ", file=sys.stderr)
    return made.seconds, made.tokens


def sentencepiece(case: Case) -> tuple[float, int]:
    """One call over all documents in memory; its ids are the truth for rewarm's shard."""
    import sentencepiece

    from tokenization.shards.store import open_tokens

    processor = sentencepiece.SentencePieceProcessor(model_file=str(case.tokenizer / "tokenizer.model"))
    texts = list(_texts(case.jsonl))
    began = time.perf_counter()
    rows = processor.encode(texts, num_threads=case.workers)
    seconds = time.perf_counter() - began
    store, at = open_tokens(case.folder / "rewarm"), 0
    for number, row in enumerate(rows):
        if store.read(at, len(row) + 1).tolist() != [*row, store.eos_id]:
            raise SystemExit(f"document {number} differs from SentencePiece: {texts[number][:80]!r}")
        at += len(row) + 1
    if (at, len(rows)) != (store.tokens, store.documents):
        raise SystemExit("rewarm's shard has other documents than the text")
    return seconds, at - len(rows)


def hugging_face(case: Case) -> tuple[float, int]:
    """`tokenizers`, in batches of 1,000, over documents in memory."""
    os.environ["RAYON_NUM_THREADS"] = str(case.workers)
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(case.tokenizer / "tokenizer.json"))
    texts, count = list(_texts(case.jsonl)), 0
    began = time.perf_counter()
    for start in range(0, len(texts), 1000):
        batch = tokenizer.encode_batch(texts[start : start + 1000], add_special_tokens=False)
        count += sum(len(encoding.ids) for encoding in batch)
    return time.perf_counter() - began, count


def megatron_hugging_face(case: Case) -> tuple[float, int]:
    return _megatron(case, "hugging face", _begin_hugging_face)


def megatron_sentencepiece(case: Case) -> tuple[float, int]:
    return _megatron(case, "sentencepiece", _begin_sentencepiece)


def _megatron(case: Case, name: str, begin: Callable[[str], None]) -> tuple[float, int]:
    from megatron.core.datasets import indexed_dataset

    from tokenization.tokenizer.files import open_tokenizer

    opened = open_tokenizer(case.tokenizer)
    prefix, count = case.folder / f"megatron {name}", 0
    began = time.perf_counter()
    builder = indexed_dataset.IndexedDatasetBuilder(
        f"{prefix}.bin", dtype=indexed_dataset.DType.optimal_dtype(opened.size)
    )
    with (
        open(case.jsonl, encoding="utf-8") as lines,
        multiprocessing.get_context("fork").Pool(case.workers, begin, (str(case.tokenizer),)) as pool,
    ):
        for ids in pool.imap(_encode_line, lines, 32):
            ids.append(opened.eos_id)
            builder.add_document(ids, [len(ids)])
            count += len(ids)
    builder.finalize(f"{prefix}.idx")
    seconds = time.perf_counter() - began
    for ending in (".bin", ".idx"):
        if Path(f"{prefix}{ending}").read_bytes() != (case.folder / f"rewarm{ending}").read_bytes():
            raise SystemExit(f"the {ending} of megatron-core with {name} is not rewarm's")
    return seconds, count


_encode: Callable[[str], list[int]]


def _begin_hugging_face(tokenizer: str) -> None:
    global _encode
    import transformers

    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer)
    _encode = lambda text: loaded(text, add_special_tokens=False)["input_ids"]  # noqa: E731


def _begin_sentencepiece(tokenizer: str) -> None:
    global _encode
    import sentencepiece

    _encode = sentencepiece.SentencePieceProcessor(model_file=f"{tokenizer}/tokenizer.model").encode


def _encode_line(line: str) -> list[int]:
    return _encode(json.loads(line)["text"])


ROWS: dict[str, Callable[[Case], tuple[float, int]]] = {
    "rewarm data prepare, end to end": rewarm,
    "SentencePiece, in memory": sentencepiece,
    "Hugging Face tokenizers, in memory": hugging_face,
    "Megatron-LM's way, SentencePiece": megatron_sentencepiece,
    "Megatron-LM's way, Hugging Face": megatron_hugging_face,
}


def _texts(jsonl: Path) -> Iterator[str]:
    with open(jsonl, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _write(text: Path, documents: int, document_bytes: int, out: Path) -> float:
    """At least `documents` documents, runs of lines of `text`, as jsonl; their UTF-8 bytes in MB."""
    from tokenization.text import records
    from tokenization.text.documents import DocumentFormat, blocks, slices_of

    format = DocumentFormat(txt="lines")
    found = [
        line
        for block in blocks(slices_of([text], format), format)
        for entry in records.read_records(block, format).texts
        for line in entry.splitlines()
        if line.strip()
    ]
    found = list(_runs(found, document_bytes))
    size = 0
    with open(out, "w", encoding="utf-8") as file:
        for entry in islice(_endless(found), max(documents, len(found))):
            file.write(json.dumps({"text": entry}, ensure_ascii=False) + "\n")
            size += len(entry.encode())
    return size / 1e6


def _runs(lines: list[str], document_bytes: int) -> Iterator[str]:
    """Yield the lines in runs that have at least so many bytes of UTF-8."""
    run: list[str] = []
    size = 0
    for line in lines:
        run.append(line)
        size += len(line.encode())
        if size >= document_bytes:
            yield "\n".join(run)
            run, size = [], 0
    if run:
        yield "\n".join(run)


def _endless(found: list[str]) -> Iterator[str]:
    """Yield the documents, then documents of as many clauses each, drawn from all of them."""
    yield from found
    draw = random.Random(0)
    clauses = [_CLAUSE.findall(entry) for entry in found]  # a line's end is a part of the clause after it
    pool = list(chain.from_iterable(clauses))
    while True:
        draw.shuffle(pool)
        drawn = iter(pool)
        yield from ("".join(islice(drawn, len(own))) for own in clauses)


def _measured(row: str, case: Case) -> tuple[float, int, float]:
    seconds, tokens = ROWS[row](case)
    own, children = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return seconds, tokens, (own + case.workers * children) / 1e3


def measure(
    name: str, text: Path, tokenizer: Path, workers: int, documents: int, document_bytes: int
) -> list[Row]:
    """Return all rows on one text, in the order of `ROWS`."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        case = Case(Path(scratch) / "text.jsonl", tokenizer, workers, Path(scratch))
        size = _write(text, documents, document_bytes, case.jsonl)
        for row in ROWS:
            print(f"{name}, {size:.1f} MB: {row}", file=sys.stderr)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                seconds, tokens, peak = alone.submit(_measured, row, case).result()
            speed = size / seconds
            rows.append(
                Row(name, row, seconds, speed, (rows[0].mb_per_s if rows else speed) / speed, peak, tokens)
            )
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = ["| text | way | MB/s | rewarm is | peak memory |", "|---|---|---:|---:|---:|"]
    for row in rows:
        times = "" if row.ratio == 1 else f"{row.ratio:.1f}×"
        lines.append(f"| {row.text} | {row.name} | {row.mb_per_s:.1f} | {times} | {row.peak_mb:,.0f} MB |")
    return "\n".join(lines)


def _circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "command": "python benchmarks/encode.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "workers": arguments.workers,
        "documents": arguments.documents,
        "document_bytes": arguments.document_bytes,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def main() -> None:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="a directory that rewarm wrote")
    parser.add_argument(
        "--text", action="append", required=True, metavar="NAME=PATH", help="lines or records of text"
    )
    parser.add_argument("--documents", type=int, default=200_000, help="at least so many of each text")
    parser.add_argument("--document-bytes", type=int, default=1, help="join lines to documents of so many")
    parser.add_argument("--workers", type=int, default=2, help="processes or threads of every way")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures and their circumstances")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for named in arguments.text:
        name, _, path = named.partition("=")
        rows += measure(
            name,
            Path(path),
            arguments.tokenizer,
            arguments.workers,
            arguments.documents,
            arguments.document_bytes,
        )
    print(table(rows))
    if arguments.out:
        held = _circumstances(arguments) | {"rows": [asdict(row) for row in rows]}
        arguments.out.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
