"""The files of a token shard, which `shards` and `shard_writer` share.

One shard is one prefix and three files. `PREFIX.bin` holds the token ids, end to end. `PREFIX.idx` holds,
little-endian: the magic `MMIDIDX\\0\\0`, the version 1 (u64), a dtype code (u8), the number of sequences and
of sequences plus one (u64 each), every sequence's length in tokens (i32), its offset in bytes (i64), and the
document index 0, 1, … n (i64); one sequence is one document. `PREFIX.json` is written last: it counts what
the other two hold, and its presence says that the shard is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import xxhash

from tokenization.errors import InfrastructureError, UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
_DTYPES: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
CODES = {dtype: code for code, dtype in _DTYPES.items()}
CHUNK = 1 << 20
META_VERSION = 1


def token_dtype(vocab_size: int) -> np.dtype:
    """The type of a stored token id: two bytes below 65,536 pieces, else four."""
    return _DTYPES[8 if vocab_size < 65536 else 4]


def part_prefix(prefix: str | Path, part: int, parts: int) -> Path:
    """The prefix of part `part` (from 0) of `parts`; a source in one part has no suffix."""
    return Path(prefix) if parts == 1 else Path(f"{prefix}-{part:05d}-of-{parts:05d}")


def beside(prefix: Path, ending: str) -> Path:
    """The path of the file of the shard `prefix` with that ending."""
    return prefix.with_name(prefix.name + ending)


@dataclass(frozen=True)
class ShardMeta:
    """The side file: what one shard holds."""

    tokenizer: str
    """Fingerprint of the tokenizer that made the ids."""
    vocab_size: int
    eos_id: int
    documents: int
    tokens: int
    """Token ids, every document's EOS included."""
    utf8_bytes: int
    """Bytes of the text that was encoded; 0 when another tool wrote the shard and did not say."""
    checksum: str
    """xxh3-128 of the `.bin` file."""
    index_checksum: str
    """xxh3-128 of the `.idx` file."""
    version: int = META_VERSION
    job: str = ""
    """Identity of the job that wrote it, which all parts of a source share; empty if it was no such job."""

    @classmethod
    def read(cls, prefix: Path) -> ShardMeta:
        """Read the side file of the shard at `prefix`.

        Raises:
            UserError: it is absent (the shard is not whole), unreadable, or of another version.
        """
        path = beside(prefix, ".json")
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if read.get("version") != META_VERSION:
                raise UserError(
                    f"is not version {META_VERSION}, which this rewarm reads",
                    file=path,
                    field="version",
                    value=read.get("version"),
                    mend="run `rewarm data prepare` again",
                )
            read.setdefault("job", "")  # shards of the time before it was written down have none
            return cls(**{field.name: read[field.name] for field in fields(cls)})
        except FileNotFoundError:
            raise UserError(
                "is missing, so the shard is not whole",
                file=path,
                mend="finish it with `rewarm data prepare`",
            ) from None
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"is not a shard's side file ({error})", file=path, mend="run `rewarm data prepare` again"
            ) from None


def read_header(index: Path) -> tuple:
    """Magic, version, dtype code, sequences, and document bounds of an `.idx` file; zeros when it is cut."""
    with _present(index), open(index, "rb") as file:
        head = file.read(HEADER.size)
    return HEADER.unpack(head) if len(head) == HEADER.size else (b"", 0, 0, 0, 0)


def hold_size(path: Path, expected: int) -> None:
    """Hold the size of a file against what the side file counts.

    Raises:
        UserError: it is missing, cut short or too long.
    """
    with _present(path):
        size = path.stat().st_size
    if size != expected:
        raise UserError(
            f"has {size:,} bytes where its side file counts {expected:,}",
            file=path,
            mend="remove it and run `rewarm data prepare` again",
        )


def checksum(path: Path) -> str:
    """The xxh3-128 of a file, in constant memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_meta(prefix: Path, meta: ShardMeta) -> None:
    """Write the side file, which makes the shard count, after all else is on the disk."""
    sync(prefix.parent)
    write_atomically(beside(prefix, ".json"), json.dumps(asdict(meta), indent=2) + "\n")


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file that holds either what it held before or all of `text`, whatever happens."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file or a directory outlast a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _present(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError("is missing", file=path, mend="run `rewarm data prepare` again") from None


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn the failure of a disk into an error that says so and names `path`."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(f"{path}: cannot be written ({error.strerror or error})") from error
