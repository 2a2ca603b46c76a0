"""Byte-level vocabularies: each byte of a text is a character of its own, and pieces are made of those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenization.tokenizer.files import Tokenizer

NOT_IN_UTF8 = bytes([0xC0, 0xC1, *range(0xF5, 0x100)])
"""Bytes that no text in UTF-8 has, so that they need no piece."""


def alphabet() -> list[str]:
    """Return the character of each byte as in GPT-2: itself if printable, else one from U+0100 on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer's pieces are made of bytes."""
    if tokenizer.model is not None or tokenizer.json is None:
        return False
    return any(_has(tokenizer.json.get(part)) for part in ("normalizer", "pre_tokenizer"))


def missing_bytes(tokenizer: Tokenizer) -> bytes:
    """Return the bytes for which a byte-level vocabulary has no piece: texts lose them."""
    if not is_byte_level(tokenizer) or _unknown(tokenizer) is not None:
        return b""
    characters = alphabet()
    return bytes(
        byte for byte in range(256) if byte not in NOT_IN_UTF8 and tokenizer.id_of(characters[byte]) is None
    )


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that replaces text without a piece; None if the tokenizer has or needs none."""
    if tokenizer.model is not None:
        return None if tokenizer.model.trainer_spec.byte_fallback else tokenizer.special_id("unk")
    name = _unknown(tokenizer)
    return tokenizer.id_of(name) if name is not None else None


def drops_characters(tokenizer: Tokenizer) -> bool:
    """Return whether characters without a piece are lost and, unlike bytes, cannot be counted."""
    if tokenizer.model is not None or is_byte_level(tokenizer) or _unknown(tokenizer) is not None:
        return False
    return not ((tokenizer.json or {}).get("model") or {}).get("byte_fallback")


def byte_pieces(tokenizer: Tokenizer) -> list[bool]:
    """Return which ids stand for one byte of a character that is not a piece."""
    if is_byte_level(tokenizer):
        part_of_one = {character for byte, character in enumerate(alphabet()) if byte >= 0x80}
        return [piece in part_of_one for piece in tokenizer.pieces]
    return [len(piece) == 6 and piece.startswith("<0x") for piece in tokenizer.pieces]


def named(byte: int) -> str:
    """Return a byte in hexadecimal."""
    return f"0x{byte:02X}"


def _unknown(tokenizer: Tokenizer) -> str | None:
    name = ((tokenizer.json or {}).get("model") or {}).get("unk_token")
    return name if isinstance(name, str) else None


def _has(rule: Any) -> bool:
    """Return whether a rule of `tokenizer.json`, or one within it, is ByteLevel."""
    if isinstance(rule, Mapping):
        inner = [*(rule.get("normalizers") or ()), *(rule.get("pretokenizers") or ())]
        return rule.get("type") == "ByteLevel" or any(_has(one) for one in inner)
    return False
