"""Files as slices and blocks: .txt, .jsonl (plain, .gz, .zst), .parquet, what `datasets` saved, and the hub.

`slices_of` cuts the inputs into slices by names and sizes alone; `blocks` turns slices into blocks of bounded
size, in order, which other processes can read with `read_records`. Plain files are read where a block is
used. Files that are compressed, columnar or not UTF-8 cannot be read from the middle: `blocks` reads them.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenization.errors import UserError
from tokenization.text import hub
from tokenization.text.inputs import Kind, find_files, kind
from tokenization.text.streams import unpack

TxtDocuments = Literal["file", "blocks", "lines"]
"""What one document of a `.txt` is: the file, a run of lines between blank ones, or a line."""

BLOCK_BYTES = 4 << 20

_SLICES = 1 << 14

MAX_DOCUMENT_BYTES = 32 << 20
"""A longer "document" is rejected: most likely a whole corpus was read as one document."""

HUB_FILE_BYTES = 1 << 30
"""What a file of the hub counts when work is divided: its size is not asked for."""

_LONGEST_BLANK = 1 << 20

_SPACES = (
    rb"(?:[\t-\r\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f"
    rb"|\xe3\x80\x80)"
)
"""A character with `str.isspace`, in UTF-8: blank lines of books may have U+3000 and U+00A0."""

_BLANK = re.compile(_SPACES + rb"*+")

_BLANK_LINE = re.compile(rb"(?<=\n)(?:(?!\n)" + _SPACES + rb")*+\n")


@dataclass(frozen=True)
class DocumentFormat:
    """How documents are found in files."""

    text_field: str = "text"
    """The field (jsonl) or column (parquet, datasets) with the text."""
    txt: TxtDocuments = "file"
    encoding: str = "utf-8"
    """The encoding of `.txt` and `.jsonl` files that are not UTF-8."""


@dataclass(frozen=True)
class Slice:
    """A range of one file: bytes [start, stop) of a plain one, row groups of a parquet, or else the whole.

    Of a split on the hub it is the file `start`.
    """

    path: str
    kind: Kind
    start: int
    stop: int
    size: int
    """Bytes on disk, by which work is divided."""
    streamed: bool = False
    """Whether it is unpacked or decoded from its beginning."""
    row: int = 0
    """The number of its first row."""


@dataclass(frozen=True)
class Block:
    """Some documents: a range of a plain file, or bytes or rows that were unpacked from a file."""

    path: str
    kind: Literal["txt", "jsonl", "rows", "long"]
    """`long` stands for one record of more than `MAX_DOCUMENT_BYTES`."""
    start: int
    """Byte offset in the unpacked file, or number of the first row."""
    stop: int
    weight: int
    """Bytes on disk that end with this block; the last block of an unpacked file counts all of them."""
    data: bytes | list[Any] | None = None


def slices_of(
    inputs: Sequence[str | Path], format: DocumentFormat, slice_bytes: int | None = None
) -> list[Slice]:
    """Return the slices of all `inputs` in their order; files of a directory are ordered by name.

    Plain files are cut every `slice_bytes`; the default gives at most about 16,384 slices more than files.

    Raises:
        UserError: an input is missing, is of an unknown kind, lacks the column of the text, or is one
            document of more than `MAX_DOCUMENT_BYTES`.
    """
    return cut_slices(find_files(inputs, format.text_field, format.encoding).files, format, slice_bytes)


def cut_slices(files: Sequence[Path], format: DocumentFormat, slice_bytes: int | None = None) -> list[Slice]:
    """Cut `files` into slices; see `slices_of`."""
    if slice_bytes is None:
        total = sum(file.stat().st_size for file in files)
        slice_bytes = BLOCK_BYTES * max(1, -(-total // (BLOCK_BYTES * _SLICES)))
    return [piece for file in files for piece in _cut_file(file, format, slice_bytes)]


def hub_slices(inputs: Sequence[str], format: DocumentFormat) -> list[Slice]:
    """Return the files of splits on the hub as slices; their paths hold the revision and the file's number.

    Raises:
        UserError: a split is not there, is named twice, or lacks the column of the text.
        InfrastructureError: the hub cannot be reached now.
    """
    found: list[Slice] = []
    for split in map(hub.pin, inputs):
        if any(piece.path.rpartition("#")[0] == str(split) for piece in found):
            raise UserError("is named twice", file=split, fix="name it once")
        for index in range(hub.count_files(split, format.text_field)):
            found.append(Slice(f"{split}#{index}", "hub", index, index + 1, HUB_FILE_BYTES, streamed=True))
    return found


def blocks(
    slices: Sequence[Slice], format: DocumentFormat, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Yield the documents of `slices`, in order, in blocks of bounded size."""
    for piece in slices:
        if piece.kind in ("parquet", "arrow", "hub"):
            yield from _row_blocks(piece, format, block_bytes)
        elif piece.kind == "txt" and format.txt == "file":
            yield Block(piece.path, "txt", 0, piece.stop, piece.size)
        elif piece.streamed:
            yield from _streamed_blocks(piece, format, block_bytes)
        else:
            for start in range(piece.start, piece.stop, block_bytes):
                stop = min(start + block_bytes, piece.stop)
                yield Block(piece.path, piece.kind, start, stop, stop - start)  # type: ignore[arg-type]


def beginning(block: Block, size: int) -> Block:
    """Return the part of a block that begins in its first `size` bytes, or all if it cannot be cut."""
    plain = block.data is None and block.start < block.stop
    return replace(block, stop=min(block.stop, block.start + size)) if plain else block


def is_blank(line: bytes) -> bool:
    """Return whether a line has only white space, of any script."""
    return _BLANK.fullmatch(line) is not None


def refuse_long(path: str | Path, size: int, more: str = "") -> None:
    """Refuse a file that is one document of `size` bytes (or `more` than that), if that is too long.

    Raises:
        UserError: it has more than `MAX_DOCUMENT_BYTES`.
    """
    if size > MAX_DOCUMENT_BYTES:
        raise UserError(
            f"is {more}{size / 1e6:,.0f} MB, too large for one document",
            file=path,
            fix="give --documents lines or blocks, or leave it out",
        )


def _cut_file(path: Path, format: DocumentFormat, slice_bytes: int) -> Iterator[Slice]:
    name, size = str(path), path.stat().st_size
    form, packed = kind(path)
    assert form is not None
    if form in ("parquet", "arrow"):
        yield from _cut_columns(path, size, form, format, slice_bytes)
        return
    streamed = packed or format.encoding != "utf-8"
    if streamed or (form == "txt" and format.txt == "file"):
        if form == "txt" and format.txt == "file":
            refuse_long(path, _unpacked_size(path) if packed else size)
        yield Slice(name, form, 0, size, size, streamed)
        return
    for start in range(0, size, slice_bytes):
        stop = min(start + slice_bytes, size)
        yield Slice(name, form, start, stop, stop - start)


def _unpacked_size(path: Path) -> int:
    """Return the unpacked size that a compressed file declares; 0 if it declares none."""
    with open(path, "rb") as file:
        if path.name.lower().endswith(".gz"):
            if file.seek(0, os.SEEK_END) < 18:
                return 0
            file.seek(-4, os.SEEK_END)
            return int(struct.unpack("<I", file.read(4))[0])
        import zstandard

        try:
            return max(0, zstandard.frame_content_size(file.read(18)))
        except zstandard.ZstdError:
            return 0


def _cut_columns(
    path: Path, size: int, form: Kind, format: DocumentFormat, slice_bytes: int
) -> Iterator[Slice]:
    import pyarrow as pa

    groups: list[tuple[int, int]] = []  # bytes and rows of each row group
    try:
        if form == "arrow":
            with pa.memory_map(os.fsencode(path)) as source:
                names = pa.ipc.open_stream(source).schema.names
        else:
            metadata = _footer(str(path))
            names = metadata.schema.to_arrow_schema().names
            described = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
            groups = [(group.total_byte_size, group.num_rows) for group in described]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot be read ({' '.join(str(error).split())})", file=path) from None
    if format.text_field not in names:
        raise UserError(
            f"is not a column; there are {', '.join(names)}",
            file=path,
            field="--text-field",
            value=format.text_field,
        )
    if form == "arrow":
        yield Slice(str(path), form, 0, 1, size)
        return
    # Some tools write row groups of a few rows; they are joined until they are as large as other slices.
    total = max(1, sum(bytes_ for bytes_, _ in groups))
    first, row, rows, weight = 0, 0, 0, 0
    for index, (bytes_, count) in enumerate(groups, 1):
        rows, weight = rows + count, weight + bytes_
        if weight * size >= slice_bytes * total or index == len(groups):
            yield Slice(str(path), form, first, index, weight * size // total, row=row)
            first, row, rows, weight = index, row + rows, 0, 0


def _footer(path: str) -> Any:
    """Return the metadata of a parquet file, read once for all of its slices."""
    stat = os.stat(path)
    return _read_footer(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(4)
def _read_footer(path: str, size: int, changed: int) -> Any:
    import pyarrow.parquet as pq

    with open(path, "rb") as file:  # pyarrow treats a path as a URI, and fails on names that are not UTF-8
        return pq.read_metadata(file)


def _row_blocks(piece: Slice, format: DocumentFormat, block_bytes: int) -> Iterator[Block]:
    """Yield the text column of parquet row groups, of an Arrow stream or of the hub, as blocks of rows."""
    row, values, size = piece.row, [], 0
    first = row
    for value in _row_values(piece, format.text_field):
        values.append(value)
        size += len(value) if isinstance(value, (str, bytes)) else 0
        row += 1
        if size >= block_bytes:
            yield Block(piece.path, "rows", first, row, 0, values)
            first, values, size = row, [], 0
    yield Block(piece.path, "rows", first, row, piece.size, values)


def _row_values(piece: Slice, name: str) -> Iterator[Any]:
    if piece.kind == "hub":
        split = hub.HubSplit.parse(piece.path.rpartition("#")[0])
        yield from hub.read_rows(split, piece.start, name)
        return
    for column in _columns(piece, name):
        yield from _values(column)


def _columns(piece: Slice, name: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if piece.kind == "arrow":
            with pa.memory_map(os.fsencode(piece.path)) as source:
                for batch in pa.ipc.open_stream(source):
                    yield batch.column(name)
            return
        groups = list(range(piece.start, piece.stop))
        with (
            pa.OSFile(os.fsencode(piece.path)) as raw,
            pq.ParquetFile(raw, metadata=_footer(piece.path)) as file,
        ):
            for batch in file.iter_batches(1024, row_groups=groups, columns=[name], use_threads=False):
                yield batch.column(0)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"is damaged or cut short ({reason})", file=piece.path) from None


def _values(column: Any) -> list[Any]:
    """Return the values of a column; as bytes if some of its text is not UTF-8."""
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
    return values


def _streamed_blocks(piece: Slice, format: DocumentFormat, block_bytes: int) -> Iterator[Block]:
    """Yield a file that is read from its beginning, as blocks of whole records; each byte is scanned once."""
    lines = piece.kind == "jsonl" or format.txt == "lines"
    form: Literal["txt", "jsonl"] = "jsonl" if piece.kind == "jsonl" else "txt"
    at, dropped = 0, 0
    buffer, new = bytearray(), 0  # ends of records are searched from `new` on
    with unpack(piece.path, format.encoding) as file:
        while chunk := file.read(block_bytes):
            buffer += chunk
            first, last = _ends(buffer, new, lines)
            if last:
                if not dropped:
                    first = 0
                else:  # the record that is too long ends here
                    yield Block(piece.path, "long", at, at + dropped + first, 0)
                    at, dropped = at + dropped, 0
                if first < last:
                    yield Block(piece.path, form, at + first, at + last, 0, bytes(buffer[first:last]))
                at += last
                del buffer[:last]
                new = 0
            new = len(buffer) if lines else _open_line(buffer, new)
            if dropped or len(buffer) > MAX_DOCUMENT_BYTES:
                # The line break before an open line stays.
                rest = max(new - 1, 0, len(buffer) - _LONGEST_BLANK)
                dropped += rest
                new -= rest
                del buffer[:rest]
    if dropped:
        yield Block(piece.path, "long", at, at + dropped + len(buffer), piece.size)
    elif buffer or not at:
        yield Block(piece.path, form, at, at + len(buffer), piece.size, bytes(buffer))


def _ends(buffer: bytearray, new: int, lines: bool) -> tuple[int, int]:
    """Return where the first and the last whole record end, searched from `new` on; 0 if there is none."""
    if lines:
        return buffer.find(b"\n", new) + 1, buffer.rfind(b"\n", new) + 1
    ends = [match.end() for match in _BLANK_LINE.finditer(buffer, new)]
    return (ends[0], ends[-1]) if ends else (0, 0)


def _open_line(buffer: bytearray, new: int) -> int:
    """Return where the last line begins if it may still become a blank one, else the end of `buffer`."""
    begun = max(buffer.rfind(b"\n", new) + 1, new)
    blank = _BLANK.match(buffer, begun)
    assert blank is not None
    return begun if len(buffer) - blank.end() < len("\u3000".encode()) else len(buffer)
