"""What a rank has drawn from a model and kept: a journal that a kill leaves whole, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from trainer.machine.log_lines import logger
from trainer.model.sampling import SamplingRules, is_loop
from trainer.storage.records import append_record, read_json_lines


@dataclass
class DrawnCounts:
    """What became of the documents that were drawn."""

    drawn: int = 0
    empty: int = 0
    loops: int = 0
    repeated: int = 0
    cut: int = 0
    """Kept, and cut at the greatest length."""

    def add(self, other: DrawnCounts) -> None:
        """Add the counts of another batch or rank."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Journal:
    """What one rank has drawn and kept: the ids of documents end to end, and a record for each batch."""

    def __init__(self, folder: Path, rank: int, dtype: np.dtype) -> None:
        """Go on after the last whole batch."""
        self.ids, self.records = folder / f"rank-{rank:05d}.ids", folder / f"rank-{rank:05d}.jsonl"
        self.dtype = dtype
        self.batches, self.counts = 0, DrawnCounts()
        self.lengths: list[int] = []
        for record in read_json_lines(self.records, dict, lambda line: None) if self.records.exists() else []:
            self._note(record)
        self.tokens = sum(self.lengths)
        with self.ids.open("ab") as file:
            file.truncate(self.tokens * dtype.itemsize)

    def _note(self, record: dict[str, Any]) -> None:
        self.batches += 1
        self.lengths += record["lengths"]
        self.counts.add(DrawnCounts(**record["counts"]))

    def append(self, documents: list[np.ndarray], counts: DrawnCounts) -> None:
        """Add a batch; it counts once its record is on the disk."""
        with self.ids.open("ab") as file:
            file.write(b"".join(one.astype(self.dtype).tobytes() for one in documents))
            file.flush()
            os.fsync(file.fileno())
        record = {"lengths": [one.size for one in documents], "counts": asdict(counts)}
        append_record(self.records, record, logger.warning)
        self._note(record)
        self.tokens += sum(one.size for one in documents)

    def documents(self) -> Iterator[np.ndarray]:
        """Yield every document, its EOS included."""
        if not self.tokens:
            return
        ids, start = np.memmap(self.ids, self.dtype, mode="r"), 0
        for length in self.lengths:
            yield np.array(ids[start : start + length])
            start += length


def keep_documents(
    drawn: list[list[int]], rules: SamplingRules, seen: set[bytes]
) -> tuple[list[np.ndarray], DrawnCounts]:
    """Return the documents worth keeping, each ended with EOS, and what became of the others.

    Empty documents, loops and copies of those in `seen` are dropped; what is kept is added to it.
    """
    kept, counts = [], DrawnCounts(drawn=len(drawn))
    for ids in drawn:
        if not ids:
            counts.empty += 1
        elif is_loop(ids):
            counts.loops += 1
        elif (digest := digest_of(document := np.array([*ids, rules.eos_id]))) in seen:
            counts.repeated += 1
        else:
            seen.add(digest)
            kept.append(document)
            counts.cut += len(ids) == rules.longest
    return kept, counts


def digest_of(document: np.ndarray) -> bytes:
    """Return what tells a document from all others."""
    return xxhash.xxh3_128_digest(document.astype("<i4").tobytes())
