"""Which script a character belongs to, as a vocabulary extension needs it."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from functools import lru_cache

# Han is what Chinese text is made of: ideographs, radicals, strokes, bopomofo, CJK punctuation, enclosed and
# full-width forms. By block, since a Python's Unicode tables may be older than a text's characters.
_BLOCKS = [
    (0x2E80, "han"),
    (0x3040, "hiragana"),
    (0x30A0, "katakana"),
    (0x3100, "han"),
    (0x3130, "hangul"),
    (0x3190, "han"),
    (0x31F0, "katakana"),
    (0x3200, "han"),
    (0xA000, ""),
    (0xAC00, "hangul"),
    (0xD7B0, ""),
    (0xF900, "han"),
    (0xFB00, ""),
    (0xFE10, "han"),
    (0xFE20, ""),
    (0xFE30, "han"),
    (0xFE70, ""),
    (0xFF01, "han"),
    (0xFF65, "katakana"),
    (0xFFA0, "hangul"),
    (0xFFE0, "han"),
    (0xFFF0, ""),
    (0x20000, "han"),
    (0x40000, ""),
]

_STARTS = [start for start, _ in _BLOCKS]

_NAMED = {
    *("latin", "greek", "cyrillic", "armenian", "hebrew", "arabic", "devanagari", "bengali", "gurmukhi"),
    *("gujarati", "oriya", "tamil", "telugu", "kannada", "malayalam", "sinhala", "thai", "lao", "tibetan"),
    *("myanmar", "georgian", "ethiopic", "khmer", "mongolian"),
}

SCRIPT_NAMES = frozenset(_NAMED | {"han", "hiragana", "katakana", "hangul"})
"""The scripts that can be allowed."""


@lru_cache(maxsize=1 << 16)
def script(char: str) -> str:
    """Return the script of `char`, `common` for signs that many scripts share, or `other`.

    `common` are spaces, punctuation, symbols and marks outside the blocks of a script: an em dash, a
    curly quote, an emoji.
    """
    block = bisect_right(_STARTS, ord(char)) - 1
    if block >= 0 and _BLOCKS[block][1]:
        return _BLOCKS[block][1]
    named = unicodedata.name(char, "").split(" ")[0].lower()
    if named in _NAMED:
        return named
    return "other" if unicodedata.category(char)[0] in "LN" else "common"
