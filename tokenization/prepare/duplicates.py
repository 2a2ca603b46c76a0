"""Find documents that repeat an earlier one, before encoding, so that each part knows those of all parts.

Hashes of all documents are sorted in buckets on the disk, so memory grows by only one
bit per document. The first of equal documents, in the order of the inputs, is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import io
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenization.disk import disk_errors, with_ending, write_atomically
from tokenization.prepare.job import Job
from tokenization.prepare.workers import Digesting, map_in_workers, tasks
from tokenization.text import documents

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<i8")])

_MOST_PENDING = 4 << 20

_BUCKETS = 256


@dataclass(frozen=True)
class Duplicates:
    """One bit per document of the corpus, and where each part begins."""

    bits: np.ndarray
    starts: np.ndarray

    def among(self, part: int, start: int, count: int) -> np.ndarray:
        """Return which of the documents [start, start + count) of `part` repeat an earlier document."""
        first = int(self.starts[part]) + start
        low = first // 8
        bits = np.unpackbits(self.bits[low : (first + count + 7) // 8], bitorder="little")
        return bits[first - 8 * low : first - 8 * low + count].astype(bool)


def remove_cache(job: Job) -> None:
    """Remove the stored duplicates when every part is finished."""
    file = with_ending(job.out, ".duplicates.npz")
    _sweep(file, "*")
    for path in (file, file.with_name(f"{file.name}.lock")):
        path.unlink(missing_ok=True)


def find_duplicates(job: Job, workers: int) -> Duplicates:
    """Find the duplicates of a corpus once, for all parts and all processes of the job."""
    file = with_ending(job.out, ".duplicates.npz")
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.with_name(f"{file.name}.lock")) as alone:
            known = _load(file, job.identity)
            if known is not None:
                return known
            if alone:  # no other process of this host runs: these folders are of killed ones
                _sweep(file, f"{socket.gethostname()}.*")
            return _search(job, workers, file)


def _load(file: Path, identity: str) -> Duplicates | None:
    if not file.is_file():
        return None
    with np.load(file) as stored:
        return Duplicates(stored["bits"], stored["starts"]) if str(stored["identity"]) == identity else None


def _search(job: Job, workers: int, file: Path) -> Duplicates:
    folder = file.with_name(f"{file.name}.{socket.gethostname()}.{os.getpid()}.partial.d")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        starts, total, spilled, pending, count = [], 0, False, [np.empty(0, _RECORD)], 0
        for part in range(job.parts):
            starts.append(total)
            todo = tasks(documents.blocks(job.part(part), job.format))
            with contextlib.closing(map_in_workers(Digesting(job.format), todo, workers)) as made:
                for digests in made:
                    pending.append(_records(digests, total))
                    total += len(digests)
                    count += len(digests)
                    if count >= _MOST_PENDING:
                        _spill(folder, np.concatenate(pending))
                        spilled, pending, count = True, [np.empty(0, _RECORD)], 0
        bits = np.zeros(total // 8 + 1, dtype=np.uint8)
        rest = np.concatenate(pending)
        if spilled:
            _spill(folder, rest)
        for records in _buckets(folder) if spilled else [rest]:
            places = _repeated(records)
            np.bitwise_or.at(bits, places // 8, np.uint8(1) << (places % 8).astype(np.uint8))
        found = Duplicates(bits, np.array(starts, dtype=np.int64))
        packed = io.BytesIO()
        np.savez_compressed(packed, bits=found.bits, starts=found.starts, identity=np.array(job.identity))
        written = folder / file.name
        write_atomically(written, packed.getvalue())
        written.replace(file)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(file: Path, whose: str) -> None:
    for folder in file.parent.glob(f"{glob.escape(file.name)}.{whose}.partial.d"):
        shutil.rmtree(folder, ignore_errors=True)


def _records(digests: np.ndarray, first: int) -> np.ndarray:
    records = np.empty(len(digests), dtype=_RECORD)
    records["high"], records["low"] = digests[:, 0], digests[:, 1]
    records["place"] = np.arange(first, first + len(digests))
    return records


def _spill(folder: Path, records: np.ndarray) -> None:
    buckets = records["high"] // np.uint64(2**64 // _BUCKETS)
    records = records[np.argsort(buckets, kind="stable")]
    ends = np.cumsum(np.bincount(buckets.astype(np.int64), minlength=_BUCKETS))
    for bucket, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        with open(folder / f"{bucket:03d}", "ab") as file:
            file.write(records[start:end].tobytes())


def _buckets(folder: Path) -> Iterator[np.ndarray]:
    for file in sorted(folder.iterdir()):
        yield np.fromfile(file, dtype=_RECORD)


def _repeated(records: np.ndarray) -> np.ndarray:
    """Return the places of the records whose hash an earlier record has."""
    ordered = records[np.lexsort((records["place"], records["low"], records["high"]))]
    same = [ordered[name][1:] == ordered[name][:-1] for name in ("high", "low", "place")]
    return ordered["place"][1:][same[0] & same[1] & ~same[2]]


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Wait until no other process of the job holds the lock; yield False on a file system without locks."""
    with open(file, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
