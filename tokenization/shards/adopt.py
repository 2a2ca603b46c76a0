"""Use shards of Megatron-LM or gpt-neox as they are: check them, and write the side file that they lack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.disk import checksum, disk_errors, with_ending
from tokenization.errors import UserError
from tokenization.shards.format import CODES, HEADER, MAGIC, ShardMeta, read_header, token_dtype, write_meta
from tokenization.tokenizer.decoder import decoder_of
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.fingerprint import same
from tokenization.tokenizer.piece_bytes import piece_bytes

_AT_ONCE = 1 << 24
"""Tokens that are held in memory."""

_MADE_BY = "make it with tools/preprocess_data.py --append-eod, and without --split-sentences"


@dataclass(frozen=True)
class Adopted:
    """What `adopt_shard` has found."""

    prefix: str
    meta: ShardMeta
    beginning: str
    """The first characters of the first document, by which a person sees whether the tokenizer is right."""

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the same as lines."""
        return (
            f"{self.prefix}: {self.meta.documents:,} documents, {self.meta.tokens:,} tokens, "
            f"{self.meta.utf8_bytes:,} bytes of text; {self.prefix}.json is written\n"
            f"it begins: {json.dumps(self.beginning, ensure_ascii=False)}"
        )


def adopt_shard(prefix: str | Path, tokenizer: str | Path) -> Adopted:
    """Check the shard at `prefix` against `tokenizer`, and write its side file; the others stay as they are.

    Bytes of text are those of the pieces, as the shard does not tell them.

    Raises:
        UserError: it has a side file, is not such a shard, or cannot be of this tokenizer.
        InfrastructureError: the disk failed.
    """
    prefix, known = Path(prefix), open_tokenizer(tokenizer)
    side, index, data = (with_ending(prefix, ending) for ending in (".json", ".idx", ".bin"))
    if side.exists():
        made_with = ShardMeta.read(prefix).tokenizer
        if not same(made_with, known.fingerprint):
            what = f"says that the shard was made with tokenizer {made_with}, but {known.path} is"
            raise UserError(f"{what} {known.fingerprint}", file=side, fix="give the tokenizer that made it")
        raise UserError("exists already: the shard can be used as it is", file=side)
    if not index.is_file():
        fix = "give the path of the shard's .idx and .bin files without the ending"
        raise UserError("is missing", file=index, fix=fix)
    documents, tokens = _read_index(index, data, known)
    bytes_of = np.array([len(piece) for piece in piece_bytes(known)], dtype=np.int64)
    utf8_bytes = 0
    for ids in _blocks(data, token_dtype(known.size), tokens):
        if int(ids.max()) >= known.size:
            what = f"holds the id {int(ids.max()):,}, and {known.path} has {known.size:,} pieces"
            raise UserError(what, file=data, fix="give the tokenizer that made it")
        utf8_bytes += int(bytes_of[ids].sum())
    meta = ShardMeta(
        tokenizer=known.fingerprint,
        vocab_size=known.size,
        eos_id=known.eos_id,
        documents=documents,
        tokens=tokens,
        utf8_bytes=utf8_bytes,
        checksum=checksum(data),
        index_checksum=checksum(index),
    )
    first = next(_blocks(data, token_dtype(known.size), min(tokens, 64)), np.empty(0, np.int64))
    with disk_errors(side):
        write_meta(prefix, meta)
    return Adopted(str(prefix), meta, decoder_of(known)(first.tolist())[:80])


def _read_index(index: Path, data: Path, known: Tokenizer) -> tuple[int, int]:
    """Return the numbers of documents and of tokens, of an index in which each document is one sequence."""
    magic, version, code, sequences, bounds = read_header(index)
    dtype = token_dtype(known.size)
    if (magic, version) != (MAGIC, 1):
        raise UserError("is not an index of Megatron-LM's format MMIDIDX, version 1", file=index)
    if code != CODES[dtype]:
        what = f"stores ids with dtype code {code}, and {known.size:,} pieces need {CODES[dtype]} ({dtype})"
        raise UserError(what, file=index, fix="give the tokenizer that made it, or make it again")
    if sequences == 0 or bounds != sequences + 1:
        what = f"has {sequences:,} sequences in {bounds - 1:,} documents"
        raise UserError(what, file=index, fix=_MADE_BY)
    expected = HEADER.size + 12 * sequences + 8 * bounds
    if (size := index.stat().st_size) != expected:
        raise UserError(f"has {size:,} bytes where its header counts {expected:,}", file=index)
    if not data.is_file():
        raise UserError("is missing", file=data, fix="copy it beside its .idx file")
    lengths = np.memmap(index, "<i4", mode="r", offset=HEADER.size, shape=(sequences,))
    starts = np.memmap(index, "<i8", mode="r", offset=HEADER.size + 4 * sequences, shape=(sequences,))
    tokens = 0
    ids = np.memmap(data, dtype, mode="r") if data.stat().st_size else np.empty(0, dtype)
    for begin in range(0, sequences, _AT_ONCE):
        own = lengths[begin : begin + _AT_ONCE].astype(np.int64)
        ends = tokens + np.cumsum(own)
        at = starts[begin : begin + _AT_ONCE]
        if own.min() < 1 or (at != (ends - own) * dtype.itemsize).any() or int(ends[-1]) > len(ids):
            raise UserError("does not lay its sequences end to end", file=index, fix=_MADE_BY)
        if (bad := int((ids[ends - 1] != known.eos_id).sum())) > 0:
            what = f"has {bad:,} documents that do not end with EOS, id {known.eos_id}"
            raise UserError(what, file=data, fix=_MADE_BY)
        tokens = int(ends[-1])
    if tokens != len(ids):
        raise UserError(f"holds {len(ids):,} tokens, and its index {tokens:,}", file=data)
    return sequences, tokens


def _blocks(data: Path, dtype: np.dtype, tokens: int) -> Iterator[np.ndarray]:
    ids = np.memmap(data, dtype, mode="r")
    for begin in range(0, tokens, _AT_ONCE):
        yield np.asarray(ids[begin : min(begin + _AT_ONCE, tokens)], dtype=np.int64)
