"""The writer of token shards: a shard is whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from tokenization.disk import checksum, disk_errors, with_ending
from tokenization.errors import UserError
from tokenization.shards.format import CHUNK, CODES, HEADER, MAGIC, ShardMeta, token_dtype, write_meta

_LOCK_TRIES = 30


class ShardWriter:
    """Writes one shard under temporary names; `close` makes it appear, whole, or not at all.

    As a context manager it closes when the block ends well and discards when it does not. Memory stays
    constant: both files are streamed. The bytes depend only on what is added.
    """

    def __init__(
        self,
        prefix: str | Path,
        *,
        vocab_size: int,
        tokenizer: str,
        eos_id: int,
        job: str = "",
        generated: dict[str, Any] | None = None,
    ) -> None:
        """Create the temporary files of a shard at `prefix`, for ids below `vocab_size` of that tokenizer.

        `job` is the identity that all parts of a source have in common; `generated` tells which model wrote
        the text, if one did.

        Raises:
            UserError: another process is writing this shard.
            InfrastructureError: the files cannot be made.
        """
        self.prefix = Path(prefix)
        self.documents = self.tokens = self.utf8_bytes = 0
        self._vocab_size, self._tokenizer, self._eos_id = vocab_size, tokenizer, eos_id
        self._job, self._generated = job, generated
        self._dtype = token_dtype(vocab_size)
        self._hash = xxhash.xxh3_128()
        self._bin_path, self._idx_path = (
            with_ending(self.prefix, end) for end in (".bin.partial", ".idx.partial")
        )
        self._open = contextlib.ExitStack()
        with disk_errors(self._bin_path):
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self._bin = self._open.enter_context(_exclusive(self._bin_path))
            self._idx = self._open.enter_context(self._idx_path.open("w+b"))
            self._idx.write(bytes(HEADER.size))

    def add_document(self, ids: npt.ArrayLike, utf8_bytes: int = 0) -> None:
        """Add one document, ended with EOS unless `ids` already end with it."""
        ids = np.asarray(ids)
        if ids.size == 0 or ids[-1] != self._eos_id:
            ids = np.append(ids, self._eos_id)
        self.add_documents(ids, np.array([ids.size]), utf8_bytes)

    def add_documents(self, ids: np.ndarray, lengths: np.ndarray, utf8_bytes: int = 0) -> None:
        """Add several documents: their ids end to end, each ended with EOS, and their lengths in tokens.

        Raises:
            ValueError: the lengths do not fit the ids, an id is outside the vocabulary, or EOS is missing.
        """
        if lengths.size == 0:
            return
        if int(lengths.sum()) != ids.size or int(lengths.min()) < 1 or int(lengths.max()) >= 2**31:
            raise ValueError("the lengths of the documents do not add up to their ids")
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size:
            raise ValueError(f"a token id is not in [0, {self._vocab_size})")
        if (ids[np.cumsum(lengths) - 1] != self._eos_id).any():
            raise ValueError("a document does not end with EOS")
        data = ids.astype(self._dtype, copy=False).tobytes()
        with disk_errors(self._bin_path):
            self._bin.write(data)
            self._idx.write(lengths.astype("<i4", copy=False).tobytes())
        self._hash.update(data)
        self.documents += lengths.size
        self.tokens += ids.size
        self.utf8_bytes += utf8_bytes

    def close(self) -> ShardMeta:
        """Finish the index, sync, give the files their names, and write the side file last.

        Raises:
            InfrastructureError: the disk is full or failed; no file is left that looks whole.
        """
        try:
            with disk_errors(self._idx_path):
                self._finish_index()
                for file in (self._bin, self._idx):
                    file.flush()
                    os.fsync(file.fileno())
                meta = self._meta()
                with_ending(self.prefix, ".json").unlink(missing_ok=True)
                self._bin_path.replace(with_ending(self.prefix, ".bin"))
                self._idx_path.replace(with_ending(self.prefix, ".idx"))
                write_meta(self.prefix, meta)
        except BaseException:
            self.discard()
            raise
        self._open.close()
        return meta

    def discard(self) -> None:
        """Remove the temporary files; a shard that an earlier writer finished stays."""
        with contextlib.suppress(OSError):
            self._open.close()
        for path in (self._bin_path, self._idx_path):
            path.unlink(missing_ok=True)

    def _finish_index(self) -> None:
        """Write the offsets in bytes and the document index after the lengths, in constant memory."""
        itemsize, offset = self._dtype.itemsize, 0
        for start in range(0, self.documents, CHUNK):
            self._idx.seek(HEADER.size + 4 * start)
            lengths = np.frombuffer(self._idx.read(4 * min(CHUNK, self.documents - start)), "<i4")
            ends = offset + np.cumsum(lengths, dtype=np.int64) * itemsize
            self._idx.seek(HEADER.size + 4 * self.documents + 8 * start)
            self._idx.write((ends - lengths.astype(np.int64) * itemsize).astype("<i8").tobytes())
            offset = int(ends[-1])
        self._idx.seek(HEADER.size + 12 * self.documents)
        for start in range(0, self.documents + 1, CHUNK):
            stop = min(start + CHUNK, self.documents + 1)
            self._idx.write(np.arange(start, stop, dtype="<i8").tobytes())
        self._idx.seek(0)
        self._idx.write(HEADER.pack(MAGIC, 1, CODES[self._dtype], self.documents, self.documents + 1))

    def _meta(self) -> ShardMeta:
        return ShardMeta(
            tokenizer=self._tokenizer,
            vocab_size=self._vocab_size,
            eos_id=self._eos_id,
            documents=self.documents,
            tokens=self.tokens,
            utf8_bytes=self.utf8_bytes,
            checksum=self._hash.hexdigest(),
            index_checksum=checksum(self._idx_path),
            job=self._job,
            generated=self._generated,
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _exclusive(path: Path) -> BinaryIO:
    """Open `path` for writing, unless another process has it.

    The lock of a killed process may be held by its forked workers for a second, until they notice.
    """
    file = open(path, "ab")  # noqa: SIM115 - the caller closes it
    for left in range(_LOCK_TRIES, -1, -1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if left == 0:
                file.close()
                raise UserError(
                    "is being written by another process", file=path, fix="wait for that process, or stop it"
                ) from None
            time.sleep(0.1)
        except OSError:
            break  # a file system without locks
    file.truncate(0)
    return file
