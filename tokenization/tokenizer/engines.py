"""The libraries that turn lines of text into token ids, behind one interface."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm

Encoded = tuple[np.ndarray, np.ndarray]
"""Ids of several texts end to end, and how many belong to each text."""

_MEMORY_MB = 200


class EncodingEngine(Protocol):
    """An encoder; each process has its own."""

    name: str

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of `texts`, without BOS and EOS, computed on this thread."""
        ...


class SentencePieceEngine:
    """The reference if there is a `tokenizer.model`."""

    name = "sentencepiece"

    def __init__(self, model: spm.ModelProto, threads: int = 1) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self._threads = threads

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return ids and lengths; see `EncodingEngine`."""
        return joined(self._processor.encode(list(texts), num_threads=self._threads))


class TokenizersEngine:
    """Hugging Face's Rust library; the reference if there is only a `tokenizer.json`."""

    name = "tokenizers"

    def __init__(self, text: str) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.encode_special_tokens = True  # they are not matched in texts

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return ids and lengths; see `EncodingEngine`."""
        # One by one: the batch call starts threads, which a forked worker must not.
        return joined([self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts])

    def id_of(self, token: str) -> int | None:
        """Return the id of a piece or an added token, or None for an unknown token."""
        index: int | None = self._tokenizer.token_to_id(token)
        return index


class GigatokenEngine:
    """gigatoken's Rust library.

    Its call for one text caches words, which its call for a batch does not, and has no cost per document. So
    documents are joined by NUL, a byte that never merges, and split again by its id. The cache is dropped
    when it has grown by `_MEMORY_MB`.
    """

    name = "gigatoken"

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokenizer: Any = None
        self._load()
        self._between, self._nul = self._separator()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return ids and lengths; see `EncodingEngine`."""
        if not texts:
            return joined([])
        if not self._between:
            return self._batch(texts)
        odd = [index for index, text in enumerate(texts) if not text or "\0" in text]
        if not odd:
            return self._together(texts)
        plain = [text for text in texts if text and "\0" not in text]
        rows = split(self._together(plain)) if plain else []
        for index in odd:
            rows.insert(index, self._single(texts[index]))
        return np.concatenate(rows), np.array([row.size for row in rows], dtype=np.int64)

    def _together(self, texts: Sequence[str]) -> Encoded:
        ids = self._single(self._between.join(texts))
        between = ids == self._nul
        ends = np.append(np.flatnonzero(between), ids.size)
        lengths = np.diff(ends, prepend=-1) - 1
        if lengths.size != len(texts):
            raise RuntimeError(f"gigatoken gave {lengths.size} documents for {len(texts)}")
        if _resident_mb() > self._full_mb:
            self._load()
        return ids[~between], lengths

    def _single(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text))

    def _batch(self, texts: Sequence[str]) -> Encoded:
        layout = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    def _load(self) -> None:
        import gigatoken

        self._tokenizer = None  # first, so that there are never two in memory
        self._tokenizer = gigatoken.Tokenizer.from_json(self._text)
        self._full_mb = _resident_mb() + _MEMORY_MB

    def _separator(self) -> tuple[str, int]:
        """Return the separator with which each document is encoded as if alone, and the id of its NUL.

        The separator is NUL without a dummy prefix, and NUL and a space with one. It is empty if text is
        split before it is merged, or if a piece contains NUL.
        """
        tokenizer_json = json.loads(self._text)
        if tokenizer_json.get("pre_tokenizer") or not tokenizer_json["model"].get("byte_fallback"):
            return "", -1
        if any("\0" in piece for piece in tokenizer_json["model"]["vocab"]):
            return "", -1
        first, second = self._single("x").tolist(), self._single(" y").tolist()
        for between in ("\0 ", "\0"):
            joined = self._single(f"x{between} y").tolist()
            if joined[: len(first)] == first and joined[len(first) + 1 :] == second:
                return between, joined[len(first)]
        return "", -1


def split(encoded: Encoded) -> list[np.ndarray]:
    """Return the ids of each text as an array of its own."""
    ids, lengths = encoded
    return np.split(ids, np.cumsum(lengths)[:-1]) if lengths.size else []


def _resident_mb() -> float:
    """Return the MB of memory that this process uses, or 0 where the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def joined(rows: Sequence[Sequence[int]]) -> Encoded:
    """Join rows of ids end to end."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
    return ids, lengths
