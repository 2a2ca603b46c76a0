"""Byte-level tokenizers made by hand, laid out as those of Qwen2.5 and SmolLM2."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tokenization.bytelevel import alphabet

MERGES = ("e l", "l o", "h el", "Ġ hel", "Ġhel lo", "ä ¸", "ä¸ Ń")
"""` hello` and 中 (E4 B8 AD) are pieces."""


def tokenizer_json(
    *, special: Sequence[str] = ("<|end|>",), found: Sequence[str] = (), without: Collection[int] = ()
) -> dict[str, Any]:
    """A `tokenizer.json`: the bytes but those `without`, merges, special tokens, and ones found in texts."""
    pieces = [character for byte, character in enumerate(alphabet()) if byte not in without]
    pieces += [merge.replace(" ", "") for merge in MERGES]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    named = [(token, True) for token in special] + [(token, False) for token in found]
    added = [
        {"id": len(pieces) + place, "content": token, **flags, "special": kind}
        for place, (token, kind) in enumerate(named)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
    model |= {"vocab": {piece: index for index, piece in enumerate(pieces)}, "merges": list(MERGES)}
    held = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    held |= {"pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model}
    return held


def save(folder: Path, held: dict[str, Any], **config: Any) -> Path:
    """Write it as a directory whose EOS is `<|end|>`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder
