"""Documents out of files: .txt, .jsonl (.gz, .zst), .parquet, and directories that `datasets` saved.

`plan` cuts the inputs into slices from names and sizes alone; `blocks` turns slices into blocks of bounded
size, in order, which other processes can read with `read`. Plain files are read where the block is used;
compressed and columnar ones, which have no place to begin in the middle, are unpacked on the way.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import zstandard

from tokenization.errors import UserError

TxtDocuments = Literal["file", "blocks", "lines"]
"""What one document of a `.txt` is: the file, a run of lines between blank ones, or a line."""

BLOCK_BYTES = 4 << 20
_SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst", ".parquet")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Format:
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
    kind: Literal["txt", "jsonl", "rows"]
    start: int
    """Byte offset in the unpacked file, or number of the first row."""
    stop: int
    weight: int
    """Bytes on disk that are done with this block; an unpacked file's come with its last."""
    data: bytes | list[Any] | None = None


@dataclass
class Batch:
    """What `read` finds in a block."""

    block: Block
    texts: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """UTF-8 bytes of each text."""
    rejects: list[Reject] = field(default_factory=list)

    def take(self, value: object, at: int) -> None:
        """Add the text `value`, found at `at`, or say why it is none."""
        try:
            text = value.decode() if isinstance(value, bytes) else value
            if not isinstance(text, str):
                return self.reject(value, at, "is not text")
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeDecodeError:
            return self.reject(value, at, "is not UTF-8")
        except UnicodeEncodeError:
            return self.reject(value, at, "has a lone surrogate")
        if not text or text.isspace():
            return self.reject(value, at, "is empty")
        self.texts.append(text)
        self.sizes.append(size)
        return None

    def take_json(self, line: bytes, name: str, at: int) -> None:
        """Add the text in the field `name` of a JSON object, or say why there is none."""
        try:
            record = json.loads(line)
        except UnicodeDecodeError:
            return self.reject(line, at, "is not UTF-8")
        except json.JSONDecodeError as error:
            return self.reject(line, at, f"is not JSON ({error.msg})")
        except (ValueError, RecursionError):
            return self.reject(line, at, "is not JSON that can be read")
        if not isinstance(record, dict):
            return self.reject(line, at, "is not a JSON object")
        if name not in record:
            return self.reject(line, at, f"has no field {name!r}")
        return self.take(record[name], at)

    def reject(self, value: object, at: int, why: str) -> None:
        """Note that the record at `at` is no document."""
        shown = value[:80] if isinstance(value, (str, bytes)) else value
        self.rejects.append(Reject(self.block.path, at, self.block.kind == "rows", why, repr(shown)[:100]))


@dataclass(frozen=True)
class Reject:
    """A record that is no document."""

    path: str
    at: int
    """Byte offset of the record's line in the unpacked file; a row's number in a columnar one."""
    row: bool
    why: str
    excerpt: str


def plan(inputs: Sequence[str | Path], format: Format, block_bytes: int = BLOCK_BYTES) -> list[Slice]:
    """The slices of all `inputs`, in the order given, directories in the order of their names.

    Raises:
        UserError: an input is missing, is of an unknown kind, or lacks the column of the text.
    """
    return [
        piece for path in inputs for file in _files(Path(path)) for piece in _cut(file, format, block_bytes)
    ]


def blocks(slices: Sequence[Slice], format: Format, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The documents of `slices`, in order, in blocks whose size does not depend on the size of the files."""
    for piece in slices:
        if piece.kind in ("parquet", "arrow"):
            yield from _row_blocks(piece, format, block_bytes)
        elif piece.packed:
            yield from _unpacked_blocks(piece, format, block_bytes)
        else:
            yield Block(piece.path, piece.kind, piece.start, piece.stop, piece.size)  # type: ignore[arg-type]


def read(block: Block, format: Format) -> Batch:
    """The documents of a block, and its records that are none."""
    batch = Batch(block)
    if isinstance(block.data, list):
        for row, value in enumerate(block.data, start=block.start):
            batch.take(value, row)
    elif block.kind == "jsonl":
        for at, line in _records(block, format):
            batch.take_json(line, format.text_field, at)
    else:
        for at, text in _records(block, format):
            batch.take(text, at)
    return batch


def number(rejects: Sequence[Reject]) -> list[tuple[Reject, int]]:
    """Each reject with its line, or row, from 1; one reading of each file as far as its last reject."""
    lines: dict[tuple[str, int], int] = {}
    for path in sorted({reject.path for reject in rejects if not reject.row}):
        offsets = sorted({reject.at for reject in rejects if reject.path == path})
        line, done = 1, 0
        with _unpack(path) as file:
            for at in offsets:
                while done < at and (chunk := file.read(min(1 << 20, at - done))):
                    line += chunk.count(b"\n")
                    done += len(chunk)
                lines[path, at] = line
    return [(reject, reject.at + 1 if reject.row else lines[reject.path, reject.at]) for reject in rejects]


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
            raise UserError("holds several splits", file=path, mend=f"name one: {path / splits[0]}")
        if (path / "state.json").is_file():
            state = json.loads((path / "state.json").read_text())
            yield from (path / data["filename"] for data in state["_data_files"])
            return
        found = [
            Path(top) / name for top, _, names in os.walk(path) for name in names if name.endswith(_SUFFIXES)
        ]
        if not found:
            raise UserError(f"has no {' '.join(_SUFFIXES)} file", file=path)
        yield from sorted(found, key=lambda file: file.relative_to(path).parts)
    elif not path.exists():
        raise UserError("is not there", file=path, mend="name a file or a directory of texts")
    elif not path.name.endswith((*_SUFFIXES, ".arrow")):
        raise UserError("is of no known kind", file=path, mend=f"convert it to one of {' '.join(_SUFFIXES)}")
    else:
        yield path


def _cut(path: Path, format: Format, block_bytes: int) -> Iterator[Slice]:
    name, size = str(path), path.stat().st_size
    if path.suffix in (".parquet", ".arrow"):
        yield from _cut_columns(path, size, format)
        return
    packed = path.suffix[1:] if path.suffix in (".gz", ".zst") else ""
    kind = Path(path.stem).suffix[1:] if packed else path.suffix[1:]
    if packed or (kind == "txt" and format.txt == "file"):
        yield Slice(name, kind, 0, size, size, packed)  # type: ignore[arg-type]
        return
    for start in range(0, size, block_bytes):
        stop = min(start + block_bytes, size)
        yield Slice(name, kind, start, stop, stop - start)  # type: ignore[arg-type]


def _cut_columns(path: Path, size: int, format: Format) -> Iterator[Slice]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                names, groups = pa.ipc.open_stream(source).schema.names, 1
        else:
            with pq.ParquetFile(path) as file:
                names, groups = file.schema_arrow.names, file.num_row_groups
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"cannot be read ({error})", file=path) from None
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


def _row_blocks(piece: Slice, format: Format, block_bytes: int) -> Iterator[Block]:
    """The text column of a parquet's row groups, or of an Arrow stream, as blocks of rows."""
    row, held, size = _first_row(piece), [], 0
    first = row
    for column in _columns(piece, format.text_field):
        for value in column.to_pylist():
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

    if piece.kind == "arrow":
        with pa.memory_map(piece.path) as source:
            for batch in pa.ipc.open_stream(source):
                yield batch.column(name)
        return
    with pq.ParquetFile(piece.path) as file:
        groups = list(range(piece.start, piece.stop))
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=[name], use_threads=False):
            yield batch.column(0)


def _unpacked_blocks(piece: Slice, format: Format, block_bytes: int) -> Iterator[Block]:
    """A compressed file as blocks of whole records."""
    kind: Literal["txt", "jsonl"] = "jsonl" if piece.kind == "jsonl" else "txt"
    find_end = {"file": lambda held: 0, "blocks": _after_last_blank, "lines": _after_last_line}[
        "lines" if kind == "jsonl" else format.txt
    ]
    at, held = 0, b""
    try:
        with _unpack(piece.path) as file:
            while chunk := file.read(block_bytes):
                held += chunk
                if cut := find_end(held):
                    yield Block(piece.path, kind, at, at + cut, 0, held[:cut])
                    at, held = at + cut, held[cut:]
    except (EOFError, zlib.error, OSError, zstandard.ZstdError) as error:
        raise UserError(f"is damaged or cut short ({error})", file=piece.path) from None
    if held or not at:
        yield Block(piece.path, kind, at, at + len(held), piece.size, held)


def _after_last_line(held: bytes) -> int:
    return held.rfind(b"\n") + 1


def _after_last_blank(held: bytes) -> int:
    """The end of the last blank line that follows a line, or 0."""
    end = held.rfind(b"\n")
    while end > 0:
        before = held.rfind(b"\n", 0, end)
        if before < 0:
            return 0
        if not held[before:end].strip():
            return end + 1
        end = before
    return 0


def _unpack(path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.endswith(".zst"):
        packed = open(path, "rb")  # noqa: SIM115 - the reader closes it
        reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True, closefd=True)
        return io.BufferedReader(reader)
    return open(path, "rb")


def _records(block: Block, format: Format) -> Iterator[tuple[int, bytes]]:
    """The records that begin in the block, each with its offset."""
    if isinstance(block.data, bytes):
        file: BinaryIO = io.BytesIO(block.data)
        base = block.start
    else:
        file = open(block.path, "rb")  # noqa: SIM115 - closed below
        base = 0
    with file:
        if block.kind == "txt" and format.txt == "file":
            yield block.start, _chomp(_without_bom(file.read()))
        elif block.kind == "txt" and format.txt == "blocks":
            yield from _paragraphs(file, block, base)
        else:
            yield from ((at, _chomp(line)) for at, line in _lines(file, block, base) if line.strip())


def _lines(file: BinaryIO, block: Block, base: int) -> Iterator[tuple[int, bytes]]:
    """Every line that begins in [start, stop), with its offset; an earlier one is another block's."""
    at = block.start
    if at > base:
        file.seek(at - base - 1)
        at += len(file.readline()) - 1
    while at < block.stop and (line := file.readline()):
        yield at, _without_bom(line) if at == 0 else line
        at += len(line)


def _paragraphs(file: BinaryIO, block: Block, base: int) -> Iterator[tuple[int, bytes]]:
    """Runs of lines between blank ones. A run is the block's in which the blank line before it begins."""
    endless = replace(block, stop=1 << 62)
    mine = block.start == 0 or block.data is not None
    begun = 0
    held: list[bytes] = []
    for at, line in _lines(file, endless, base):
        if line.strip():
            if mine:
                begun = begun if held else at
                held.append(line)
            elif at >= block.stop:
                return
            continue
        if held:
            yield begun, _chomp(b"".join(held))
            held = []
        mine = at < block.stop
        if not mine:
            return
    if held:
        yield begun, _chomp(b"".join(held))


def _without_bom(line: bytes) -> bytes:
    return line.removeprefix(_BOM)


def _chomp(line: bytes) -> bytes:
    """Without its last line break."""
    return line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line
