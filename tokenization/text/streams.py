"""A file as a stream of UTF-8: unpacked, and decoded from other encodings."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard

from tokenization.errors import UserError

PACKED = (".gz", ".zst", ".zstd")
"""Endings of compressed files, in lower case."""

_ASCII = bytes(range(128))

_DECISIVE = 64
"""Bytes beyond ASCII that suffice to decide an encoding."""

_CHUNK = 1 << 20

_PACKED_CHUNK = 1 << 12
"""Bytes that are unpacked in one step: few, since they can give much text."""

_LARGEST_WINDOW = 1 << 31
"""The longest window of zstd; a file takes as much memory as its window is long."""


@contextlib.contextmanager
def unpack(path: str, encoding: str = "utf-8") -> Iterator[BinaryIO]:
    """Open a file to read its text as UTF-8.

    A file that is not UTF-8 is decoded from `encoding`; what cannot be decoded becomes bytes that are not
    UTF-8.

    Raises:
        UserError: it is damaged or cut short.
    """
    with contextlib.ExitStack() as opened:
        raw: BinaryIO = opened.enter_context(open(path, "rb"))
        try:
            if path.lower().endswith(".gz"):
                raw = opened.enter_context(cast(BinaryIO, gzip.GzipFile(fileobj=raw)))
            elif path.lower().endswith(PACKED):
                raw = opened.enter_context(cast(BinaryIO, io.BufferedReader(_Zstandard(raw), _CHUNK)))
            if encoding != "utf-8":
                raw = opened.enter_context(cast(BinaryIO, io.BufferedReader(_Decoded(raw, encoding), _CHUNK)))
            yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise UserError(f"is damaged or cut short ({error})", file=path) from None


def check_encoding(name: str) -> str:
    """Return the standard name of a text encoding.

    Raises:
        UserError: Python does not know such an encoding of text.
    """
    try:
        usual = codecs.lookup(name).name
        b"".decode(usual)
        "".encode(usual)
    except (LookupError, ValueError):
        raise UserError(
            "is not a text encoding", field="--encoding", value=name, fix="write it like gb18030 or utf-16"
        ) from None
    return "utf-8" if usual == "utf-8-sig" else usual


def guess_encoding(data: bytes) -> str | None:
    """Return the probable encoding of text that is not UTF-8; None if no encoding fits."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    text = {name: _decoded_start(data, name) for name in _COMMON}
    share = {name: sum(char in _COMMON[name] for char in found) for name, found in text.items()}
    best = max(share, key=lambda name: share[name])
    characters = sum(not char.isascii() for char in text[best])
    return best if share[best] * 20 > characters > 0 else None


_COMMON = {
    "gb18030": frozenset(
        "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下"
    ),
    "big5": frozenset("的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下"),
}
"""Encodings of Chinese, with characters that are frequent in every text."""


def _decoded_start(data: bytes, encoding: str) -> str:
    return codecs.getincrementaldecoder(encoding)("ignore").decode(data[: 1 << 16])


class _Pieces(io.RawIOBase):
    """A stream of bytes that come in pieces."""

    _output = memoryview(b"")

    @abstractmethod
    def _next(self) -> bytes | None:
        """Return the next piece, which may be empty; None at the end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer and return its bytes; 0 at the end."""
        while not self._output:
            if (piece := self._next()) is None:
                return 0
            self._output = memoryview(piece)
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        size = min(len(target), len(self._output))
        target[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


class _Zstandard(_Pieces):
    """The frames of a zstd file, one after another, with windows of any length."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._context = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""

    def _next(self) -> bytes | None:
        self._input = self._input or self._packed.read(_PACKED_CHUNK)
        if not self._input:
            if self._frame is not None:
                raise EOFError("the last frame has no end")
            return None
        self._frame = self._frame or self._context.decompressobj()
        output = self._frame.decompress(self._input)
        self._input = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
        return output


class _Decoded(_Pieces):
    """A stream of some encoding as UTF-8, or unchanged if it is UTF-8 already.

    Many folders have text of both kinds. Reading UTF-8 as GB18030 gives wrong text without an error, so the
    first chunk with bytes beyond ASCII decides.
    """

    def __init__(self, raw: BinaryIO, encoding: str) -> None:
        self._raw, self._encoding = raw, encoding
        self._decoder: codecs.IncrementalDecoder | None = None
        self._decided = "中あ가éжא".encode(encoding, "ignore").isascii()  # UTF-7, HZ: every byte is ASCII
        if self._decided:
            self._decoder = _decoder(encoding)
        self._ended = False

    def _next(self) -> bytes | None:
        if self._ended:
            return None
        chunk = self._raw.read(_CHUNK)
        if not self._decided and 0 < len(chunk.translate(None, _ASCII)) < _DECISIVE:
            chunk += self._raw.read(_CHUNK)
        self._ended = not chunk
        return self._as_utf8(chunk)

    def _as_utf8(self, chunk: bytes) -> bytes:
        if not self._decided and not (chunk.isascii() and b"\0" not in chunk):
            self._decided = True
            if not _is_utf8(chunk, self._encoding):
                self._decoder = _decoder(self._encoding)
        if self._decoder is None:
            return chunk
        return self._decoder.decode(chunk, self._ended).encode("utf-8", "surrogateescape")


def _is_utf8(chunk: bytes, encoding: str) -> bool:
    """Return whether a chunk beyond ASCII is UTF-8, with little damage, and not text in `encoding`."""
    if b"\0" in chunk and encoding.startswith(("utf-16", "utf-32")):
        return False
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    right = len(decoder.decode(chunk).encode()) + len(decoder.getstate()[0])  # the last character may be cut
    return (len(chunk) - right) * 10 <= len(chunk.translate(None, _ASCII))


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(encoding)(_MARK)


def _marked(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be decoded by bytes that are not UTF-8, so that its record is rejected."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


_MARK = "rewarm-mark"

codecs.register_error(_MARK, _marked)
