"""The files of a token shard: names, layout, and the side file.

One shard is one prefix and three files. `PREFIX.bin` holds the token ids, end to end. `PREFIX.idx` holds,
little-endian: the magic `MMIDIDX\0\0`, the version 1 (u64), a dtype code (u8), the number of sequences and
of sequences plus one (u64 each), every sequence's length in tokens (i32), its offset in bytes (i64), and the
document index 0, 1, … n (i64); one sequence is one document. `PREFIX.json` is written last: it counts what
the other two hold, and a shard without it is not whole.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.disk import sync_path, with_ending, write_atomically
from tokenization.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"

HEADER = struct.Struct("<9sQBQQ")

_DTYPES: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}

CODES = {dtype: code for code, dtype in _DTYPES.items()}

CHUNK = 1 << 20

META_VERSION = 1


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type of a stored token id: two bytes below 65,536 pieces, else four."""
    return _DTYPES[8 if vocab_size < 65536 else 4]


def part_prefix(prefix: str | Path, part: int, parts: int) -> Path:
    """Return the prefix of part `part` (from 0) of `parts`; a source in one part has no suffix."""
    return Path(prefix) if parts == 1 else Path(f"{prefix}-{part:05d}-of-{parts:05d}")


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
    """Bytes of the text that was encoded; 0 if the writer did not count them."""
    checksum: str
    """xxh3-128 of the `.bin` file."""
    index_checksum: str
    """xxh3-128 of the `.idx` file."""
    version: int = META_VERSION
    job: str = ""
    """Identity of the job that wrote it, which all parts of a source share; empty if no job did."""
    generated: dict[str, Any] | None = None
    """The model that wrote the text, and how; None if people wrote it."""

    @classmethod
    def read(cls, prefix: Path) -> ShardMeta:
        """Read the side file of the shard at `prefix`.

        Raises:
            UserError: it is absent (the shard is not whole), unreadable, or of another version.
        """
        path = with_ending(prefix, ".json")
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if read.get("version") != META_VERSION:
                raise UserError(
                    f"is not version {META_VERSION}, which this version of rewarm reads",
                    file=path,
                    field="version",
                    value=read.get("version"),
                    fix="run `rewarm data prepare` again",
                )
            read.setdefault("job", "")  # shards of earlier versions have none
            read.setdefault("generated", None)
            return cls(**{field.name: _checked(field.name, read[field.name]) for field in fields(cls)})
        except FileNotFoundError:
            raise UserError(
                "is missing, so the shard is not whole", file=path, fix=_how_to_finish(prefix)
            ) from None
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", file=path) from None
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(
                f"is not a shard's side file ({error})", file=path, fix="run `rewarm data prepare` again"
            ) from None


def _how_to_finish(prefix: Path) -> str:
    """Say how a shard without a side file becomes whole."""
    if part := re.search(r"-(\d{5})-of-(\d{5})$", prefix.name):
        return f"finish it with `rewarm data prepare … --part {int(part[1]) + 1}/{int(part[2])}`"
    if with_ending(prefix, ".idx").is_file():
        others = f"run `rewarm data adopt {prefix} --tokenizer TOKENIZER`"
        return f"finish it with `rewarm data prepare`; if Megatron-LM or gpt-neox made it, {others}"
    return "finish it with `rewarm data prepare`"


_TEXTS = {"tokenizer", "checksum", "index_checksum", "job"}


def _checked(name: str, value: Any) -> Any:
    """Check the kind and the size of a fact in a side file.

    Raises:
        ValueError: it is another kind of value, or a number that no shard has.
    """
    if name in _TEXTS:
        if not isinstance(value, str):
            raise ValueError(f"{name} is not text")
        return value
    if name == "generated":
        if value is not None and not isinstance(value, dict):
            raise ValueError("generated is not a mapping")
        return value
    most, least = (2**31, 1) if name == "vocab_size" else (2**62, 0)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is not a whole number from {least} to {most}")
    return value


def read_header(index: Path) -> tuple:
    """Read magic, version, dtype code, sequences and document bounds of an `.idx` file; zeros if cut."""
    with _present(index), open(index, "rb") as file:
        head = file.read(HEADER.size)
    return HEADER.unpack(head) if len(head) == HEADER.size else (b"", 0, 0, 0, 0)


def check_size(path: Path, expected: int) -> None:
    """Check the size of a file against the counts of the side file.

    Raises:
        UserError: it is missing, cut short or too long.
    """
    with _present(path):
        size = path.stat().st_size
    if size != expected:
        raise UserError(
            f"has {size:,} bytes where its side file counts {expected:,}",
            file=path,
            fix="remove it and run `rewarm data prepare` again",
        )


def write_meta(prefix: Path, meta: ShardMeta) -> None:
    """Write the side file, after everything else is on the disk; it marks the shard as whole."""
    sync_path(prefix.parent)
    told = {name: value for name, value in asdict(meta).items() if name != "generated" or value is not None}
    write_atomically(with_ending(prefix, ".json"), json.dumps(told, indent=2) + "\n")


@contextlib.contextmanager
def _present(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError("is missing", file=path, fix="run `rewarm data prepare` again") from None
