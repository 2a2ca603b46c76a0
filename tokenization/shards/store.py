"""Token shards: memory-mapped reading and verification.

A source is one shard, or the parts `PREFIX-00000-of-00004` … of one, which are read as one stream of tokens.
"""

from __future__ import annotations

import difflib
import json
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from tokenization.disk import checksum, with_ending
from tokenization.errors import UserError
from tokenization.shards.format import (
    CODES,
    HEADER,
    MAGIC,
    ShardMeta,
    check_size,
    part_prefix,
    read_header,
    token_dtype,
)
from tokenization.tokenizer.fingerprint import core, same


class TokenStore:
    """The tokens of a source, memory-mapped: one or many parts, read as one stream.

    Sample j is the tokens [j · seq_len, (j + 1) · seq_len], inputs and successors, so neighbours share one.
    """

    def __init__(self, prefix: Path, parts: list[_Part]) -> None:
        """Join `parts`, which `open_tokens` has checked."""
        self.prefix = prefix
        self.parts = parts
        first = parts[0].meta
        self.tokenizer = max((part.meta.tokenizer for part in parts), key=len)
        """The longest fingerprint: parts of an earlier version have its first half."""
        self.eos_id = first.eos_id
        self.vocab_size = max(part.meta.vocab_size for part in parts)
        self.dtype = token_dtype(first.vocab_size)
        self._starts = np.cumsum([0] + [part.meta.tokens for part in parts])
        self.tokens = int(self._starts[-1])
        self.documents = sum(part.meta.documents for part in parts)
        self.utf8_bytes = sum(part.meta.utf8_bytes for part in parts)
        self.fingerprint = _fingerprint([part.meta for part in parts])
        self.generated = next((part.meta.generated for part in parts if part.meta.generated), None)
        """The model that wrote the text, and how; None if people wrote it."""

    def samples(self, seq_len: int) -> int:
        """Return the number of samples of `seq_len` inputs that the source has."""
        return max(0, (self.tokens - 1) // seq_len)

    def read(self, start: int, count: int) -> np.ndarray:
        """Return the token ids [start, start + count), across parts.

        Raises:
            IndexError: some of them are outside the source.
            UserError: an id is beyond the vocabulary.
        """
        return self._checked(self._read(start, count))

    def _read(self, start: int, count: int) -> np.ndarray:
        if start < 0 or count < 0 or start + count > self.tokens:
            raise IndexError(f"tokens [{start}, {start + count}) are not in [0, {self.tokens})")
        part, first, stop = self._locate(start, count)
        if stop <= part.meta.tokens:
            return np.array(part.ids[first:stop])
        spans = self._spans(start, count)
        return np.concatenate([self.parts[index].ids[first:stop] for index, first, stop in spans])

    def read_samples(self, indices: npt.ArrayLike, seq_len: int) -> np.ndarray:
        """Return the samples `indices`, as int32 [n, seq_len + 1]: inputs are [:, :-1], targets [:, 1:].

        Raises:
            IndexError: a sample is outside the source.
            UserError: an id is beyond the vocabulary.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        out = np.empty((wanted.size, seq_len + 1), dtype=np.int32)
        for row, index in enumerate(wanted.tolist()):
            start = index * seq_len
            if not 0 <= start <= self.tokens - seq_len - 1:
                raise IndexError(f"sample {index} is not in [0, {self.samples(seq_len)})")
            part, first, stop = self._locate(start, seq_len + 1)
            whole = stop <= part.meta.tokens
            out[row] = part.ids[first:stop] if whole else self._read(start, seq_len + 1)
        return self._checked(out)

    def documents_of(self, start: int, count: int) -> tuple[int, int]:
        """Return the numbers, from 0, of the first and the last document of tokens [start, start + count)."""
        first, last = (self.document_at(token) for token in (start, start + count - 1))
        return first, last

    def document_at(self, token: int) -> int:
        """Return the number, from 0, of the document that a token of the source belongs to."""
        index = min(int(np.searchsorted(self._starts, token, side="right")) - 1, len(self.parts) - 1)
        offset = (token - int(self._starts[index])) * self.parts[index].ids.itemsize
        before = sum(part.meta.documents for part in self.parts[:index])
        return before + int(np.searchsorted(self.parts[index].offsets, offset, side="right")) - 1

    def document_start(self, document: int) -> int:
        """Return the first token of a document of the source."""
        for index, part in enumerate(self.parts):
            if document < part.meta.documents:
                within = int(part.offsets[document]) // part.ids.itemsize
                if not 0 <= within <= part.meta.tokens:
                    what, fix = "is damaged: a document begins outside", "run `rewarm data inspect` on it"
                    raise UserError(what, file=with_ending(part.prefix, ".idx"), fix=fix)
                return int(self._starts[index]) + within
            document -= part.meta.documents
        raise IndexError(f"document {document} is beyond the source")

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        """The ids, none of which may be beyond the vocabulary: no model has a row for it.

        A damaged file is found here, since nobody reads a whole corpus before each start.
        """
        if ids.size and int(ids.max()) >= self.vocab_size:
            what = f"holds the token id {int(ids.max())}, and its vocabulary has {self.vocab_size} pieces"
            fix = "run `rewarm data inspect` on it, and `rewarm data prepare` again"
            raise UserError(what, file=self.prefix, fix=fix)
        return ids

    def _locate(self, start: int, count: int) -> tuple[_Part, int, int]:
        """Return the part with token `start`, and the run [first, stop) in it, which may pass its end."""
        index = min(int(np.searchsorted(self._starts, start, side="right")) - 1, len(self.parts) - 1)
        first = start - int(self._starts[index])
        return self.parts[index], first, first + count

    def _spans(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield the parts (by index) that [start, start + count) touches, each with its own run of tokens."""
        for index, part in enumerate(self.parts):
            base = int(self._starts[index])
            first, stop = max(start - base, 0), min(start + count - base, part.meta.tokens)
            if first < stop:
                yield index, first, stop


class _Part:
    """One whole shard, mapped; its sizes agree with its side file."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.meta = ShardMeta.read(prefix)
        dtype, documents = token_dtype(self.meta.vocab_size), self.meta.documents
        check_size(with_ending(prefix, ".bin"), self.meta.tokens * dtype.itemsize)
        index = with_ending(prefix, ".idx")
        check_size(index, HEADER.size + 12 * documents + 8 * (documents + 1))
        expected = (MAGIC, 1, CODES[dtype], documents, documents + 1)
        if read_header(index) != expected:
            raise UserError("does not fit its side file", file=index, fix="run `rewarm data prepare` again")
        empty = self.meta.tokens == 0
        self.ids = np.empty(0, dtype) if empty else np.memmap(with_ending(prefix, ".bin"), dtype, mode="r")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document."""
        index, documents = with_ending(self.prefix, ".idx"), self.meta.documents
        return np.memmap(index, "<i4", mode="r", offset=HEADER.size, shape=(documents,))

    @property
    def offsets(self) -> np.ndarray:
        """First byte of each document in the file of tokens."""
        index, documents = with_ending(self.prefix, ".idx"), self.meta.documents
        at = HEADER.size + 4 * documents
        return np.memmap(index, "<i8", mode="r", offset=at, shape=(documents,))


def open_tokens(prefix: str | Path) -> TokenStore:
    """Open the source at `prefix`: one shard, or all parts of one.

    Raises:
        UserError: a file is missing, cut short or does not fit its side file, or the parts are not alike.
    """
    parts = [_Part(part) for part in find_parts(prefix)]
    first = parts[0].meta
    jobs = {part.meta.job: part for part in reversed(parts) if part.meta.job}
    if len(jobs) > 1:
        *_, other = sorted(jobs.values(), key=lambda part: part.prefix)
        raise UserError(
            "is a part of another job than the first: the inputs or the options were not the same, so that"
            " documents are missing or stored twice",
            file=with_ending(other.prefix, ".json"),
            fix="prepare all parts again, from the same files, with --overwrite",
        )
    for part in parts[1:]:
        for field, like in (("tokenizer", same), ("vocab_size", _one_dtype), ("eos_id", operator.eq)):
            if not like(getattr(part.meta, field), getattr(first, field)):
                raise UserError(
                    f"is not {getattr(first, field)!r}, as in the first part",
                    file=with_ending(part.prefix, ".json"),
                    field=field,
                    value=getattr(part.meta, field),
                    fix="prepare every part with one tokenizer",
                )
    return TokenStore(Path(prefix), parts)


def _one_dtype(one: int, other: int) -> bool:
    """Return whether ids of two vocabularies are stored alike, such as with and without added tokens."""
    return token_dtype(one) == token_dtype(other)


@dataclass(frozen=True)
class Inspection:
    """What a source holds, for a reader or a program."""

    prefix: str
    parts: int
    documents: int
    tokens: int
    utf8_bytes: int
    shortest: int
    """Tokens of the shortest document, its EOS included."""
    longest: int
    vocab_size: int
    eos_id: int
    dtype: str
    tokenizer: str
    fingerprint: str
    generated: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the same as lines of text."""
        mean = self.tokens / max(self.documents, 1)
        ratio = self.utf8_bytes / max(self.tokens, 1)
        lengths = f"of {self.shortest:,} to {self.longest:,} tokens, mean {mean:,.1f}"
        made = [f"generated    {name} {value}" for name, value in (self.generated or {}).items()]
        return "\n".join(
            [
                f"{self.prefix}: {self.parts} part(s), {self.dtype}",
                f"documents    {self.documents:,} {lengths}",
                f"tokens       {self.tokens:,}",
                f"text         {self.utf8_bytes:,} bytes, {ratio:.3f} per token",
                f"tokenizer    {self.tokenizer}, {self.vocab_size:,} pieces, EOS {self.eos_id}",
                f"fingerprint  {self.fingerprint}",
                *made,
            ]
        )


def inspect_shard(prefix: str | Path) -> Inspection:
    """Return what the source at `prefix` holds; the sizes of its files are checked, the checksums are not.

    Raises:
        UserError: see `open_tokens`.
    """
    store = open_tokens(prefix)
    lengths = [part.lengths for part in store.parts if part.meta.documents]
    return Inspection(
        prefix=str(prefix),
        parts=len(store.parts),
        documents=store.documents,
        tokens=store.tokens,
        utf8_bytes=store.utf8_bytes,
        shortest=min((int(part.min()) for part in lengths), default=0),
        longest=max((int(part.max()) for part in lengths), default=0),
        vocab_size=store.vocab_size,
        eos_id=store.eos_id,
        dtype=store.dtype.name,
        tokenizer=store.tokenizer,
        fingerprint=store.fingerprint,
        generated=store.generated,
    )


def find_parts(prefix: str | Path) -> list[Path]:
    """Return the prefixes of the shards of the source at `prefix`, in order.

    Raises:
        UserError: there is none, a part is missing, or two generations of parts are there.
    """
    prefix = Path(prefix)
    pattern = re.compile(re.escape(prefix.name) + r"-(\d{5})-of-(\d{5})\.(?:json|bin|idx)")
    names = os.listdir(prefix.parent) if prefix.parent.is_dir() else []
    counts = {int(match[2]) for name in names if (match := pattern.fullmatch(name))}
    single = any(f"{prefix.name}{ending}" in names for ending in (".json", ".bin", ".idx"))
    if single + len(counts) > 1:
        kinds = ["one shard"] * single + [f"{count} parts" for count in sorted(counts)]
        raise UserError(f"holds {' and '.join(kinds)} at once", file=prefix, fix="remove the outdated files")
    if not counts:
        if single:
            return [prefix]
        raise UserError("has no token shards", file=prefix, fix=_where_shards_are(prefix, names))
    parts = counts.pop()
    return [part_prefix(prefix, part, parts) for part in range(parts)]


_ENDING = re.compile(r"(-\d{5}-of-\d{5})?\.(json|bin|idx)")


def _where_shards_are(prefix: Path, names: list[str]) -> str:
    """Say what to give in place of a prefix without shards, in whose folder the files `names` are."""
    folder = prefix.parent
    others = {_ENDING.sub("", name) for name in names if name.endswith(".idx")}
    if (bare := _ENDING.sub("", prefix.name)) in others:
        return f"give the prefix {folder / bare}, without the ending"
    if not others:
        return "make them with `rewarm data prepare`"
    alike = difflib.get_close_matches(prefix.name, sorted(others), n=3, cutoff=0.0)
    return f"make them with `rewarm data prepare`, or correct the prefix: {folder} holds {', '.join(alike)}"


def verify_shard(prefix: str | Path) -> None:
    """Read every byte of the source and compare its checksums.

    Raises:
        UserError: a file is damaged; it is named.
    """
    for part in find_parts(prefix):
        meta = _Part(part).meta
        for ending, wanted in ((".bin", meta.checksum), (".idx", meta.index_checksum)):
            if checksum(with_ending(part, ending)) != wanted:
                raise UserError(
                    "is damaged: its checksum is not the one in the side file",
                    file=with_ending(part, ending),
                    fix="remove it and run `rewarm data prepare` again",
                )


def _fingerprint(metas: list[ShardMeta]) -> str:
    """Hash what the store holds: its tokens, in whatever parts they are.

    Only the first half of the tokenizer's fingerprint counts: runs of earlier versions know only that.
    """
    facts = [
        [core(meta.tokenizer), meta.eos_id, meta.tokens, meta.documents, meta.checksum] for meta in metas
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())
