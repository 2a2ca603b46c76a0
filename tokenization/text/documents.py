"""Documents out of files: .txt, .jsonl (.gz, .zst), .parquet, and directories that `datasets` saved.

`plan` cuts the inputs into slices from names and sizes alone; `blocks` turns slices into blocks of bounded
size, in order, which other processes can read with `records.read`. Plain files are read where the block is
used; compressed and columnar ones, which have no place to begin in the middle, are unpacked on the way.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tokenization.errors import UserError
from tokenization.text.inputs import find_files

TxtDocuments = Literal["file", "blocks", "lines"]
"""What one document of a `.txt` is: the file, a run of lines between blank ones, or a line."""


BLOCK_BYTES = 4 << 20


_SLICES = 1 << 14


MAX_DOCUMENT_BYTES = 32 << 20
"""A longer document is none: it is a corpus whose documents were not told apart."""


_MARGIN = 64


_BETWEEN = {
    "file": re.compile(rb"(?!)"),
    "blocks": re.compile(rb"(?<=\n)[ \t\r\v\f]*\n"),
    "lines": re.compile(rb"\n"),
}
"""What ends a record of an unpacked stream."""


@dataclass(frozen=True)
class DocumentFormat:
    """How documents are found in files."""

    text_field: str = "text"
    """The field (jsonl) or column (parquet, datasets) that holds the text."""
    txt: TxtDocuments = "file"


@dataclass(frozen=True)
class Slice:
    """A stretch of one file: bytes [start, stop) of a plain one, row groups of a parquet, else the whole."""

    path: str
    kind: Literal["txt", "jsonl", "parquet", "arrow"]
    start: int
    stop: int
    size: int
    """Its weight when work is divided: bytes on disk."""
    packed: Literal["", "gz", "zst"] = ""


@dataclass(frozen=True)
class Block:
    """Some documents: a range of a plain file, or bytes or rows that were unpacked from another."""

    path: str
    kind: Literal["txt", "jsonl", "rows", "long"]
    """`long` stands for one record of more than `MAX_DOCUMENT_BYTES`."""
    start: int
    """Byte offset in the unpacked file, or number of the first row."""
    stop: int
    weight: int
    """Bytes on disk that are done with this block; an unpacked file's come with its last."""
    data: bytes | list[Any] | None = None


def slices_of(
    inputs: Sequence[str | Path], format: DocumentFormat, slice_bytes: int | None = None
) -> list[Slice]:
    """The slices of all `inputs`, in the order given, directories in the order of their names.

    Plain files are cut every `slice_bytes`; without it, so that there are at most some 16,384 slices more
    than files, however much there is to read.

    Raises:
        UserError: an input is missing, is of an unknown kind, lacks the column of the text, or is one
            document of more than `MAX_DOCUMENT_BYTES`.
    """
    return cut_slices(find_files(inputs).files, format, slice_bytes)


def cut_slices(files: Sequence[Path], format: DocumentFormat, slice_bytes: int | None = None) -> list[Slice]:
    """The slices of `files`; see `plan`."""
    if slice_bytes is None:
        total = sum(file.stat().st_size for file in files)
        slice_bytes = BLOCK_BYTES * max(1, -(-total // (BLOCK_BYTES * _SLICES)))
    return [piece for file in files for piece in _cut_file(file, format, slice_bytes)]


def blocks(
    slices: Sequence[Slice], format: DocumentFormat, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """The documents of `slices`, in order, in blocks whose size does not depend on the size of the files."""
    for piece in slices:
        if piece.kind in ("parquet", "arrow"):
            yield from _row_blocks(piece, format, block_bytes)
        elif piece.packed:
            yield from _unpacked_blocks(piece, format, block_bytes)
        elif piece.kind == "txt" and format.txt == "file":
            yield Block(piece.path, "txt", 0, piece.stop, piece.size)
        else:
            for start in range(piece.start, piece.stop, block_bytes):
                stop = min(start + block_bytes, piece.stop)
                yield Block(piece.path, piece.kind, start, stop, stop - start)  # type: ignore[arg-type]


def beginning(block: Block, size: int) -> Block:
    """The part of a block that begins within its first `size` bytes, or the whole if it cannot be cut."""
    plain = block.data is None and block.start < block.stop
    return replace(block, stop=min(block.stop, block.start + size)) if plain else block


def _cut_file(path: Path, format: DocumentFormat, slice_bytes: int) -> Iterator[Slice]:
    name, size = str(path), path.stat().st_size
    if path.suffix in (".parquet", ".arrow"):
        yield from _cut_columns(path, size, format)
        return
    packed = path.suffix[1:] if path.suffix in (".gz", ".zst") else ""
    kind = Path(path.stem).suffix[1:] if packed else path.suffix[1:]
    if packed or (kind == "txt" and format.txt == "file"):
        if size > MAX_DOCUMENT_BYTES and not packed:
            raise UserError(
                f"is {size / 1e6:,.0f} MB, too much for one document",
                file=path,
                fix="give --documents lines or blocks, or leave it out",
            )
        yield Slice(name, kind, 0, size, size, packed)  # type: ignore[arg-type]
        return
    for start in range(0, size, slice_bytes):
        stop = min(start + slice_bytes, size)
        yield Slice(name, kind, start, stop, stop - start)  # type: ignore[arg-type]


def _cut_columns(path: Path, size: int, format: DocumentFormat) -> Iterator[Slice]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                names, groups = pa.ipc.open_stream(source).schema.names, 1
        else:
            with pq.ParquetFile(path) as file:
                names, groups = file.schema_arrow.names, file.num_row_groups
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot be read ({' '.join(str(error).split())})", file=path) from None
    if format.text_field not in names:
        raise UserError(
            f"is not a column; there are {', '.join(names)}",
            file=path,
            field="--text-field",
            value=format.text_field,
        )
    for group in range(groups):
        kind: Literal["arrow", "parquet"] = "arrow" if path.suffix == ".arrow" else "parquet"
        yield Slice(str(path), kind, group, group + 1, size // groups)


def _row_blocks(piece: Slice, format: DocumentFormat, block_bytes: int) -> Iterator[Block]:
    """The text column of a parquet's row groups, or of an Arrow stream, as blocks of rows."""
    row, held, size = _first_row(piece), [], 0
    first = row
    for column in _columns(piece, format.text_field):
        for value in _values(column):
            held.append(value)
            size += len(value) if isinstance(value, (str, bytes)) else 0
            row += 1
            if size >= block_bytes:
                yield Block(piece.path, "rows", first, row, 0, held)
                first, held, size = row, [], 0
    yield Block(piece.path, "rows", first, row, piece.size, held)


def _first_row(piece: Slice) -> int:
    if piece.kind == "arrow" or piece.start == 0:
        return 0
    import pyarrow.parquet as pq

    with pq.ParquetFile(piece.path) as file:
        return sum(file.metadata.row_group(group).num_rows for group in range(piece.start))


def _columns(piece: Slice, name: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if piece.kind == "arrow":
            with pa.memory_map(piece.path) as source:
                for batch in pa.ipc.open_stream(source):
                    yield batch.column(name)
            return
        groups = list(range(piece.start, piece.stop))
        with pq.ParquetFile(piece.path) as file:
            for batch in file.iter_batches(1024, row_groups=groups, columns=[name], use_threads=False):
                yield batch.column(0)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"is damaged or cut short ({reason})", file=piece.path) from None


def _values(column: Any) -> list[Any]:
    """What a column holds; as bytes where it says that it is text and some of it is not."""
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
    return values


def _unpacked_blocks(piece: Slice, format: DocumentFormat, block_bytes: int) -> Iterator[Block]:
    """A compressed file as blocks of whole records."""
    kind: Literal["txt", "jsonl"] = "jsonl" if piece.kind == "jsonl" else "txt"
    between = _BETWEEN["lines" if kind == "jsonl" else format.txt]
    at, held, dropped = 0, b"", 0
    try:
        with unpack(piece.path) as file:
            while chunk := file.read(block_bytes):
                held += chunk
                if dropped and (first := between.search(held)):  # the record that is too long is over
                    end = first.end()
                    yield Block(piece.path, "long", at, at + dropped + end, 0)
                    at, held, dropped = at + dropped + end, held[end:], 0
                if not dropped and (cut := _last_end(between, held)):
                    yield Block(piece.path, kind, at, at + cut, 0, held[:cut])
                    at, held = at + cut, held[cut:]
                if dropped or len(held) > MAX_DOCUMENT_BYTES:
                    tail = held[-_MARGIN:]
                    dropped, held = dropped + len(held) - len(tail), tail
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"is damaged or cut short ({error})", file=piece.path) from None
    if dropped:
        yield Block(piece.path, "long", at, at + dropped, piece.size)
    elif held or not at:
        yield Block(piece.path, kind, at, at + len(held), piece.size, held)


def _last_end(between: re.Pattern[bytes], held: bytes) -> int:
    """Where the last record that is whole ends, looked for near the end first."""
    for start in (max(0, len(held) - (1 << 16)), 0):
        ends = [match.end() for match in between.finditer(held, start)]
        if ends:
            return ends[-1]
    return 0


def unpack(path: str) -> BinaryIO:
    """Open a file to read what it holds when unpacked."""
    if path.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.endswith(".zst"):
        import pyarrow as pa

        return pa.CompressedInputStream(path, "zstd")  # it notices a file that was cut short
    return open(path, "rb")
