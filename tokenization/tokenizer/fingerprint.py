"""The fingerprint of a tokenizer: a digest of everything that decides which ids a text gets.

It has two halves, `CORE.REST`. CORE hashes the pieces, scores, kinds, merges and the rules of normalization.
REST hashes the added tokens with their ids, EOS and BOS. Earlier versions wrote CORE alone; such a
fingerprint is still accepted, and only its one half is compared.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash
from sentencepiece import sentencepiece_model_pb2 as spm


def join(core: str, rest: Sequence[Any]) -> str:
    """Return the fingerprint of a tokenizer: its CORE, joined with a hash of `rest` (plain data)."""
    text = json.dumps(rest, ensure_ascii=True, separators=(",", ":"))
    return f"{core}.{xxhash.xxh3_64_hexdigest(b'beside 1' + text.encode())}"


def core(fingerprint: str) -> str:
    """Return the first half, which was the whole fingerprint in earlier versions."""
    return fingerprint.partition(".")[0]


def same(one: str, other: str) -> bool:
    """Return whether two fingerprints are of one tokenizer, as far as both say."""
    if "." in one and "." in other:
        return one == other
    return core(one) == core(other)


def of_model(model: spm.ModelProto) -> str:
    """Return the CORE of a SentencePiece model."""
    trainer, rules = model.trainer_spec, model.normalizer_spec
    digest = xxhash.xxh3_128(b"sentencepiece 1")
    flags = (
        trainer.model_type,
        trainer.byte_fallback,
        trainer.treat_whitespace_as_suffix,
        rules.add_dummy_prefix,
        rules.remove_extra_whitespaces,
        rules.escape_whitespaces,
        trainer.eos_id,
    )
    digest.update(repr([int(flag) for flag in flags]).encode())
    for text in (rules.precompiled_charsmap, *(piece.piece.encode() for piece in model.pieces)):
        digest.update(struct.pack("<Q", len(text)) + text)
    for piece in model.pieces:
        digest.update(struct.pack("<fB", piece.score, piece.type))
    return digest.hexdigest()


def of_json(tokenizer_json: Mapping[str, Any]) -> str:
    """Return the CORE of a `tokenizer.json`."""
    names = ("normalizer", "pre_tokenizer", "added_tokens", "model")
    rules = {name: tokenizer_json.get(name) for name in names}
    text = json.dumps(rules, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(b"tokenizer.json 1" + text.encode())
