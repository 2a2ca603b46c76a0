"""Turn blocks of documents into ids, in this process or in several, in the order of the blocks."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import xxhash

from tokenization.errors import InfrastructureError
from tokenization.text import documents, records
from tokenization.tokenizer.byte_level import named
from tokenization.tokenizer.engines import Encoded, EncodingEngine

Task = list[documents.Block]

Todo = TypeVar("Todo")
Made = TypeVar("Made")

_SPLIT_SEED = 0x5EED


@dataclass(frozen=True)
class Encoding:
    """The function of a worker that turns a task into tokens."""

    format: documents.DocumentFormat
    engine: EncodingEngine
    eos_id: int
    dtype: np.dtype
    validation: Fraction
    missing_bytes: bytes = b""
    """Bytes without a piece in the vocabulary: the engine drops them."""
    unknown_id: int | None = None
    """The id that replaces text without a piece."""

    def __call__(self, task: Task) -> EncodedDocuments:
        """Read and encode a task; every document ends with EOS."""
        batches = [records.read_records(block, self.format) for block in task]
        texts = [text for batch in batches for text in batch.texts]
        encoded = self.engine.encode(texts)
        ids, lengths = _with_eos(encoded, self.eos_id, self.dtype)
        sizes = np.array([size for batch in batches for size in batch.sizes], dtype=np.int64)
        lost = [_lost(text, self.missing_bytes) for text in texts] if self.missing_bytes else []
        if any(lost):
            sizes -= np.array([one.total() for one in lost], dtype=np.int64)
        return EncodedDocuments(
            ids,
            lengths,
            sizes,
            held_out(texts, self.validation),
            [reject for batch in batches for reject in batch.rejects],
            sum(block.weight for block in task),
            self._losses(encoded, lost),
        )

    def _losses(self, encoded: Encoded, lost: list[Counter[int]]) -> dict[str, int]:
        losses = Counter({f"byte {named(byte)}": count for byte, count in sum(lost, Counter[int]()).items()})
        if self.unknown_id is not None and (unknown := int((encoded[0] == self.unknown_id).sum())):
            losses[f"text that became the unknown token {self.unknown_id}"] = unknown
        if any(lost):
            losses["documents"] = sum(map(bool, lost))
        return dict(losses)


@dataclass(frozen=True)
class EncodedDocuments:
    """The documents of one task, in order."""

    ids: np.ndarray
    """[tokens], every document's EOS included."""
    lengths: np.ndarray
    """Tokens of each document."""
    sizes: np.ndarray
    """UTF-8 bytes of each document."""
    validation: np.ndarray
    """Whether each document belongs to the validation set."""
    rejects: list[records.Reject]
    weight: int
    lost: dict[str, int] = field(default_factory=dict)
    """What the tokenizer has no piece for, and how often; `documents` counts those that lost bytes."""


@dataclass(frozen=True)
class Digesting:
    """The function of a worker that hashes documents: [documents, 2] of 64 bits."""

    format: documents.DocumentFormat

    def __call__(self, task: Task) -> np.ndarray:
        """Return the xxh3-128 of each document of a task."""
        texts = [text for block in task for text in records.read_records(block, self.format).texts]
        digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
        return np.frombuffer(digests, dtype=">u8").reshape(-1, 2)


def held_out(texts: list[str], share: Fraction) -> np.ndarray:
    """Return which texts go to the validation set: by their hash, independent of all other texts."""
    if share == 0:
        return np.zeros(len(texts), dtype=bool)
    below = int(share * 2**64)
    hashes = (xxhash.xxh3_64_intdigest(text.encode(), seed=_SPLIT_SEED) for text in texts)
    return np.fromiter((digest < below for digest in hashes), bool, len(texts))


def tasks(found: Iterable[documents.Block], task_bytes: int = documents.BLOCK_BYTES) -> Iterator[Task]:
    """Yield blocks in groups of about `task_bytes`, so that many small files become few tasks."""
    task: Task = []
    size = 0
    for block in found:
        task.append(block)
        size += block.stop - block.start if block.kind != "rows" else task_bytes
        if size >= task_bytes:
            yield task
            task, size = [], 0
    if task:
        yield task


def map_in_workers(
    function: Callable[[Todo], Made], todo: Iterable[Todo], workers: int
) -> Generator[Made, None, None]:
    """Yield the result of `function` for each task, in order, reading ahead twice the number of workers.

    Workers are forked, so that they share the engine and its cache; they end with this process.

    Raises:
        InfrastructureError: a worker was killed.
    """
    if workers == 1:
        yield from map(function, todo)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (function, os.getpid()))
    ahead: deque[Future[Made]] = deque()
    try:
        for task in todo:
            ahead.append(pool.submit(_work, task))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool:
        raise InfrastructureError(
            "a worker was killed, perhaps for lack of memory; run it again, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], object]


def _begin_worker(function: Callable[[Any], object], parent: int) -> None:
    global _function
    _function = function
    gc.freeze()  # inherited objects are not garbage, and to collect them would copy their pages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and stops its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _work(task: object) -> Any:
    return _function(task)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _lost(text: str, missing: bytes) -> Counter[int]:
    """Count how often a text has each of the `missing` bytes."""
    data = text.encode()
    if len(data.translate(None, missing)) == len(data):
        return Counter()
    return Counter({byte: count for byte in missing if (count := data.count(byte))})


def _with_eos(encoded: Encoded, eos_id: int, dtype: np.dtype) -> Encoded:
    ids, lengths = encoded
    lengths = lengths.astype(np.int64) + 1
    ends = np.cumsum(lengths) - 1
    out = np.empty(ids.size + lengths.size, dtype=dtype)
    inside = np.ones(out.size, dtype=bool)
    inside[ends] = False
    out[ends] = eos_id
    out[inside] = ids
    return out, lengths
