"""The sizes of well-known models, from their published config.json, for plans made before a base is there."""

from __future__ import annotations

import re
from typing import Any

from tokenization.errors import UserError, did_you_mean


def _llama(hidden: int, inner: int, layers: int, heads: int, groups: int, **others: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": 32_000,
        "max_position_embeddings": 4_096,
        **others,
    }


SHAPES = {
    "llama2-7b": _llama(4096, 11008, 32, 32, 32),
    "llama2-13b": _llama(5120, 13824, 40, 40, 40),
    "llama2-70b": _llama(8192, 28672, 80, 64, 8),
    "llama3-8b": _llama(4096, 14336, 32, 32, 8, vocab_size=128_256, max_position_embeddings=8_192),
    "llama3-70b": _llama(8192, 28672, 80, 64, 8, vocab_size=128_256, max_position_embeddings=8_192),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, model_type="mistral", max_position_embeddings=32_768),
    "qwen2-7b": _llama(
        3584, 18944, 28, 28, 4, model_type="qwen2", vocab_size=152_064, max_position_embeddings=131_072
    ),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4, max_position_embeddings=2_048),
    "pythia-410m": _llama(
        1024, 4096, 24, 16, 16, model_type="gpt_neox", vocab_size=50_304, max_position_embeddings=2_048
    ),
}
"""Config fields by a short name."""


def known_shape(name: str) -> dict[str, Any]:
    """Return the config fields of a well-known model.

    Raises:
        UserError: it is not known.
    """
    if name.lower() in SHAPES:
        return dict(SHAPES[name.lower()])
    fix = did_you_mean(name.lower(), SHAPES) or f"known are {', '.join(SHAPES)}"
    raise UserError("is not a model whose sizes are known", field="--shape", value=name, fix=fix)


def shape_named_in(base: str) -> str | None:
    """Find the well-known model that the name of a base speaks of: `models/llama2-7b-zh` of `llama2-7b`."""
    plain = _letters(base)
    return next((name for name in SHAPES if _letters(name) in plain), None)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
