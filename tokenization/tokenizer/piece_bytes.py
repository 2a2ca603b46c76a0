"""The bytes of text that each id of a tokenizer stands for, and what kind of text they are of."""

from __future__ import annotations

import re
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tokenization.tokenizer.byte_level import alphabet, is_byte_level
from tokenization.tokenizer.files import Tokenizer

BYTE_CLASSES = ("cjk", "latin", "digits", "other")
"""Chinese, Japanese and Korean with their punctuation; Latin letters; digits; all else, such as spaces."""

_CJK, _LATIN, _DIGITS, _OTHER = range(4)

_BLOCKS = [
    (0x0, _OTHER),
    (0x30, _DIGITS),
    (0x3A, _OTHER),
    (0x41, _LATIN),
    (0x5B, _OTHER),
    (0x61, _LATIN),
    (0x7B, _OTHER),
    (0xC0, _LATIN),
    (0x250, _OTHER),
    (0x1E00, _LATIN),
    (0x1F00, _OTHER),
    (0x2E80, _CJK),
    (0xA4D0, _OTHER),
    (0xAC00, _CJK),
    (0xD7B0, _OTHER),
    (0xF900, _CJK),
    (0xFB00, _OTHER),
    (0xFE30, _CJK),
    (0xFE50, _OTHER),
    (0xFF01, _CJK),
    (0xFF10, _DIGITS),
    (0xFF1A, _CJK),
    (0xFF21, _LATIN),
    (0xFF3B, _CJK),
    (0xFF41, _LATIN),
    (0xFF5B, _CJK),
    (0xFFF0, _OTHER),
    (0x20000, _CJK),
    (0x40000, _OTHER),
]
"""Code points from which on a class holds."""

_STARTS = np.array([start for start, _ in _BLOCKS])
_KINDS = np.array([kind for _, kind in _BLOCKS])
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def piece_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes that each id stands for: none for control tokens and for ids without a piece."""
    special = {token.id for token in tokenizer.added_vocabulary if token.special}
    by_character = {character: byte for byte, character in enumerate(alphabet())}
    whole = is_byte_level(tokenizer)
    found = []
    for index, piece in enumerate(tokenizer.pieces):
        if index in special or not tokenizer.is_text(index):
            found.append(b"")
        elif whole and all(character in by_character for character in piece):
            found.append(bytes(by_character[character] for character in piece))
        elif match := _BYTE.fullmatch(piece):
            found.append(bytes([int(match[1], 16)]))
        else:
            found.append(piece.replace("▁", " ").encode("utf-8", "surrogatepass"))
    return found


class ByteClasses:
    """Counts the bytes of tokens by class."""

    def __init__(self, pieces: list[bytes]) -> None:
        """`pieces` are those of `piece_bytes`."""
        self._lengths = np.array([len(piece) for piece in pieces])
        self._begins = np.concatenate([[0], np.cumsum(self._lengths)])
        self._bytes = np.fromiter(chain.from_iterable(pieces), np.uint8, count=int(self._begins[-1]))

    def count(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the bytes of each of `ids` [n], which follow each other in a text, by class: [n, classes].

        A character that several tokens make is of one class; one whose beginning is not among them is
        `other`.
        """
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        token = np.repeat(np.arange(len(ids)), lengths)
        within = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
        text = self._bytes[np.repeat(self._begins[ids], lengths) + within]
        counts = np.bincount(
            token * len(BYTE_CLASSES) + _classes(text), minlength=len(ids) * len(BYTE_CLASSES)
        )
        return counts.reshape(len(ids), len(BYTE_CLASSES))


def _classes(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the class of each byte of a text in UTF-8: that of its character."""
    follows = np.concatenate([text[1:], np.zeros(3, np.uint8)]).astype(np.int64) & 0x3F
    first = text.astype(np.int64)
    size = len(text)
    two = (first & 0x1F) << 6 | follows[:size]
    three = (first & 0x0F) << 12 | follows[:size] << 6 | follows[1 : size + 1]
    four = (first & 0x07) << 18 | follows[:size] << 12 | follows[1 : size + 1] << 6 | follows[2 : size + 2]
    point = np.select([first < 0x80, first < 0xE0, first < 0xF0], [first, two, three], four)
    kinds = _KINDS[np.searchsorted(_STARTS, point, side="right") - 1]
    leads = (first & 0xC0) != 0x80
    place = np.maximum.accumulate(np.where(leads, np.arange(size), -1)) if size else np.arange(0)
    return np.where(place < 0, _OTHER, kinds[place])
