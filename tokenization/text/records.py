"""Read the records of a block: texts, or rejects with their place and the reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import BinaryIO

import orjson

from tokenization.errors import InfrastructureError
from tokenization.text.documents import (
    BLOCK_BYTES,
    MAX_DOCUMENT_BYTES,
    Block,
    DocumentFormat,
    is_blank,
    refuse_long,
)
from tokenization.text.streams import guess_encoding, unpack

_BOM = b"\xef\xbb\xbf"

LONG = f"is longer than {MAX_DOCUMENT_BYTES >> 20} MiB"
"""The reason for a record that is longer than any document."""

EMPTY = frozenset({"is empty", "is null"})
"""The reasons for records without text, of which nothing is lost."""

OTHER_ENCODING = "is not UTF-8 but "
"""The beginning of a reason that ends with the probable encoding of the record."""


@dataclass(frozen=True)
class Reject:
    """A record that is not a document."""

    path: str
    at: int
    """Byte offset of the beginning of a line in the unpacked file; row number in a columnar one."""
    lines: int
    """The number of lines from `at` to the record."""
    row: bool
    why: str
    excerpt: str


@dataclass
class ParsedBlock:
    """The texts and rejects of a block."""

    block: Block
    texts: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """UTF-8 bytes of each text."""
    rejects: list[Reject] = field(default_factory=list)
    encoding: str = "utf-8"
    """The encoding that was tried for text that is not UTF-8."""

    def take_all(self, values: Sequence[object], place: Callable[[int], tuple[int, int]]) -> None:
        """Add many texts, the i-th found at `place(i)`; valid ones are added together."""
        try:
            texts = [value.decode() if isinstance(value, bytes) else value for value in values]
            sizes = list(map(len, map(str.encode, texts)))  # type: ignore[arg-type]
            good = all(sizes) and max(sizes, default=0) <= MAX_DOCUMENT_BYTES
            good = good and not any(map(str.isspace, texts))  # type: ignore[arg-type]
        except (TypeError, UnicodeError):
            good = False
        if good:
            self.texts += texts  # type: ignore[arg-type]
            self.sizes += sizes
        else:
            for index, value in enumerate(values):
                self.take(value, *place(index))

    def take(self, value: object, at: int, lines: int = 0) -> None:
        """Add the text `value`, found `lines` lines after `at`, or reject it with the reason."""
        try:
            text = value.decode() if isinstance(value, bytes) else value
            if not isinstance(text, str):
                return self.reject(value, at, lines, "is null" if text is None else "is not text")
            size = len(text.encode())
        except UnicodeDecodeError:
            return self.reject(value, at, lines, self.not_utf8(value))
        except UnicodeEncodeError:
            return self.reject(value, at, lines, "has a lone surrogate")
        if not text or text.isspace():
            return self.reject(value, at, lines, "is empty")
        if size > MAX_DOCUMENT_BYTES:
            return self.reject(value, at, lines, LONG)
        self.texts.append(text)
        self.sizes.append(size)
        return None

    def take_record(self, record: object, name: str, at: int, lines: int) -> None:
        """Add the text in the field `name` of a JSON record, or reject it with the reason."""
        if not isinstance(record, dict):
            return self.reject(record, at, lines, "is not a JSON object")
        if name not in record:
            return self.reject(record, at, lines, f"has no field {name!r}")
        return self.take(record[name], at, lines)

    def not_utf8(self, value: object) -> str:
        """Return why a record that is not UTF-8 is rejected, with its probable encoding."""
        if self.encoding != "utf-8":
            return f"is neither UTF-8 nor {self.encoding}"
        encoding = guess_encoding(value) if isinstance(value, bytes) else None
        return f"{OTHER_ENCODING}{encoding}" if encoding else "is not UTF-8"

    def reject(self, value: object, at: int, lines: int, why: str) -> None:
        """Add a record that is not a document."""
        shown = value[:80] if isinstance(value, (str, bytes)) else value
        rejected = Reject(self.block.path, at, lines, self.block.kind == "rows", why, repr(shown)[:100])
        self.rejects.append(rejected)


def read_records(block: Block, format: DocumentFormat) -> ParsedBlock:
    """Return the documents of a block, and the records that are not documents.

    Raises:
        InfrastructureError: the file cannot be read.
    """
    try:
        return _read(block, format)
    except OSError as error:
        raise InfrastructureError(f"{block.path}: cannot be read ({error.strerror or error})") from error


def _read(block: Block, format: DocumentFormat) -> ParsedBlock:
    batch = ParsedBlock(block, encoding=format.encoding)
    if block.kind == "long":
        batch.reject("", block.start, 0, LONG)
    elif isinstance(block.data, list):
        batch.take_all(block.data, lambda row: (block.start + row, 0))
    elif block.kind == "txt" and format.txt == "blocks":
        for at, paragraph in _paragraphs(block):
            batch.take(paragraph, at)
    elif block.kind == "txt" and format.txt == "file":
        batch.take(_chomp(_whole(block, format).removeprefix(_BOM)), block.start)
    elif block.kind == "jsonl":
        _take_json(batch, *_lines_of(block), format.text_field)
    else:
        at, data = _lines_of(block)
        lines = enumerate(data.split(b"\n"))
        filled = [(index, line.removesuffix(b"\r")) for index, line in lines if not is_blank(line)]
        batch.take_all([line for _, line in filled], lambda taken: (at, filled[taken][0]))
    return batch


def number(rejects: Sequence[Reject], encoding: str = "utf-8") -> list[tuple[Reject, int]]:
    """Return each reject with its line or row from 1; each file is read once, up to its last reject."""
    before: dict[tuple[str, int], int] = {}
    for path in sorted({reject.path for reject in rejects if not reject.row}):
        line, done = 0, 0
        with unpack(path, encoding) as file:
            for at in sorted({reject.at for reject in rejects if reject.path == path}):
                while done < at and (chunk := file.read(min(1 << 20, at - done))):
                    line += chunk.count(b"\n")
                    done += len(chunk)
                before[path, at] = line
    return [(reject, _place(reject, before)) for reject in rejects]


def _place(reject: Reject, before: dict[tuple[str, int], int]) -> int:
    return 1 + (reject.at if reject.row else before[reject.path, reject.at] + reject.lines)


def _take_json(batch: ParsedBlock, at: int, data: bytes, name: str) -> None:
    lines = data.split(b"\n")
    try:
        # orjson is faster and stricter than json: what it reads, json reads to the same value.
        values = [orjson.loads(line)[name] for line in lines]
    except (ValueError, TypeError, KeyError, IndexError):
        values = None
    if values is not None:
        batch.take_all(values, lambda line: (at, line))
        return
    for index, line in enumerate(lines):
        if not is_blank(line):
            _take_json_line(batch, at, index, line, name)


def _take_json_line(batch: ParsedBlock, at: int, index: int, line: bytes, name: str) -> None:
    if len(line) > MAX_DOCUMENT_BYTES:
        return batch.reject(line, at, index, LONG)
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        batch.reject(line, at, index, batch.not_utf8(line))
    except json.JSONDecodeError as error:
        batch.reject(line, at, index, f"is not JSON ({error.msg})")
    except (ValueError, RecursionError):
        batch.reject(line, at, index, "is not JSON that can be read")
    else:
        batch.take_record(record, name, at, index)
    return None


def _whole(block: Block, format: DocumentFormat) -> bytes:
    """Return the content of a file that is one document.

    Raises:
        UserError: it is too long for a document, or damaged.
    """
    with unpack(block.path, format.encoding) as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
        refuse_long(block.path, len(data), "more than ")
    return data


def _lines_of(block: Block) -> tuple[int, bytes]:
    """Return the offset and the bytes of the lines that begin in the block, without the last line break."""
    if isinstance(block.data, bytes):
        at, data = block.start, block.data
    else:
        with open(block.path, "rb") as file:
            at = _to_line(file, block)
            data = file.read(max(0, block.stop - at))
            if data and not data.endswith(b"\n"):
                data += file.readline(MAX_DOCUMENT_BYTES + 1)
    return at, (data.removeprefix(_BOM) if at == 0 else data).removesuffix(b"\n")


def _to_line(file: BinaryIO, block: Block) -> int:
    """Seek the first line that begins in the block, or its end or beyond; return that offset."""
    at = max(block.start - 1, 0)
    file.seek(at)
    ended = block.start == 0
    while not ended and at < block.stop and (line := file.readline(BLOCK_BYTES)):
        at += len(line)
        ended = line.endswith(b"\n")
    return at


def _paragraphs(block: Block) -> Iterator[tuple[int, bytes]]:
    """Yield runs of lines between blank ones, with their offsets.

    A run belongs to the block in which the last blank line before it begins; the first run of a file belongs
    to the first block. Of a run that is too long, just enough is kept that it is rejected.
    """
    unpacked = isinstance(block.data, bytes)
    with io.BytesIO(block.data) if isinstance(block.data, bytes) else open(block.path, "rb") as file:
        at = block.start if unpacked else _to_line(file, block)
        mine = unpacked or block.start == 0
        begun, buffer = 0, bytearray()
        lines = iter(partial(file.readline, BLOCK_BYTES), b"")
        for line in chain(lines, [b""]):  # an empty line, and the end, end a run
            if not is_blank(line):
                if not mine and at >= block.stop:
                    return
                if mine:
                    begun = begun if buffer else at
                    if len(buffer) <= MAX_DOCUMENT_BYTES:
                        buffer += line.removeprefix(_BOM) if at == 0 else line
            else:
                if buffer:
                    yield begun, _chomp(bytes(buffer))
                    buffer = bytearray()
                mine = at < block.stop
                if not mine:
                    return
            at += len(line)


def _chomp(text: bytes) -> bytes:
    """Remove the last line break."""
    return text[:-1].removesuffix(b"\r") if text.endswith(b"\n") else text
