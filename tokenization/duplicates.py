"""Which documents repeat an earlier one, found before encoding so that every part knows of all the others.

Hashes of all documents are sorted in buckets on the disk, so memory does not grow with the corpus but for
one bit per document. The first of equal documents, in the order of the inputs, stays.
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

from tokenization import documents
from tokenization.encoding import Digesting, run, tasks
from tokenization.jobs import Job
from tokenization.shard_format import beside, disk, write_atomically

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<i8")])
_HELD = 4 << 20
_BUCKETS = 256


@dataclass(frozen=True)
class Duplicates:
    """One bit per document of the corpus, and where each part begins."""

    bits: np.ndarray
    starts: np.ndarray

    def among(self, part: int, start: int, count: int) -> np.ndarray:
        """Which of the documents [start, start + count) of `part` repeat an earlier one of the corpus."""
        first = int(self.starts[part]) + start
        low = first // 8
        bits = np.unpackbits(self.bits[low : (first + count + 7) // 8], bitorder="little")
        return bits[first - 8 * low : first - 8 * low + count].astype(bool)


def forget(job: Job) -> None:
    """Remove what was written down, when every part is finished."""
    file = beside(job.out, ".duplicates.npz")
    _sweep(file, "*")
    for path in (file, file.with_name(f"{file.name}.lock")):
        path.unlink(missing_ok=True)


def find(job: Job, identity: str, workers: int) -> Duplicates:
    """The duplicates of a corpus, found once for all parts and all processes of the job `identity`."""
    file = beside(job.out, ".duplicates.npz")
    with disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.with_name(f"{file.name}.lock")) as alone:
            known = _load(file, identity)
            if known is not None:
                return known
            if alone:  # of this host at least: what lies here is of processes that were killed
                _sweep(file, f"{socket.gethostname()}.*")
            return _search(job, identity, workers, file)


def _load(file: Path, identity: str) -> Duplicates | None:
    if not file.is_file():
        return None
    with np.load(file) as held:
        return Duplicates(held["bits"], held["starts"]) if str(held["identity"]) == identity else None


def _search(job: Job, identity: str, workers: int, file: Path) -> Duplicates:
    folder = file.with_name(f"{file.name}.{socket.gethostname()}.{os.getpid()}.partial.d")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        starts, total, spilled, held, count = [], 0, False, [np.empty(0, _RECORD)], 0
        for part in range(job.parts):
            starts.append(total)
            todo = tasks(documents.blocks(job.part(part), job.format))
            with contextlib.closing(run(Digesting(job.format), todo, workers)) as made:
                for digests in made:
                    held.append(_records(digests, total))
                    total += len(digests)
                    count += len(digests)
                    if count >= _HELD:
                        _spill(folder, np.concatenate(held))
                        spilled, held, count = True, [np.empty(0, _RECORD)], 0
        bits = np.zeros(total // 8 + 1, dtype=np.uint8)
        rest = np.concatenate(held)
        if spilled:
            _spill(folder, rest)
        for records in _buckets(folder) if spilled else [rest]:
            places = _repeated(records)
            np.bitwise_or.at(bits, places // 8, np.uint8(1) << (places % 8).astype(np.uint8))
        found = Duplicates(bits, np.array(starts, dtype=np.int64))
        packed = io.BytesIO()
        np.savez_compressed(packed, bits=found.bits, starts=found.starts, identity=np.array(identity))
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
    """The places of the records whose hash an earlier place has."""
    ordered = records[np.lexsort((records["place"], records["low"], records["high"]))]
    same = [ordered[name][1:] == ordered[name][:-1] for name in ("high", "low", "place")]
    return ordered["place"][1:][same[0] & same[1] & ~same[2]]


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Wait until no other process of the job holds the lock; without locks each finds the same by itself."""
    with open(file, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
