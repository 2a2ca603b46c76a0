"""The names and shapes of a model's weights, from its config alone, where transformers need not be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainer.model.architecture import SIZES
from trainer.model.size import head_dim

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "swish")
"""Activations that every supported transformers knows."""


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _flag(value: Any) -> bool:
    return type(value) is bool


def _number(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _token(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(index) is int for index in value))


def _plain_rope(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        value.get("rope_type") == "default" and _number(value.get("rope_theta")) and len(value) == 2
    )


_PLAIN: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*SIZES, "vocab_size", "max_position_embeddings"), _whole),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "base_vocab_size"), _or_none(_whole)),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache"), _flag),
    **dict.fromkeys(("attention_dropout", "initializer_range", "rms_norm_eps", "rope_theta"), _number),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _or_none(_token)),
    **dict.fromkeys(("_name_or_path", "transformers_version", "tokenizer_fingerprint"), _or_none(_text)),
    "architectures": _or_none(lambda value: isinstance(value, list) and all(map(_text, value))),
    "hidden_act": lambda value: value in ACTIVATIONS,
    "model_type": lambda value: value in ("llama", "mistral"),
    "pretraining_tp": lambda value: value == 1,
    "rope_parameters": _or_none(_plain_rope),
    "rope_scaling": lambda value: value is None,
    "sliding_window": _or_none(_whole),
    **dict.fromkeys(
        ("dtype", "torch_dtype"), lambda value: value in (None, "float32", "bfloat16", "float16")
    ),
}
"""Fields of a config that is surely one that transformers builds, with what each may hold."""


def is_plain(config: Mapping[str, Any]) -> bool:
    """Tell whether a config is surely one that transformers can build, as `weight_shapes` counts it.

    Any field or value that is not known here makes it doubtful, and transformers must be asked.
    """
    fitting = all(name in _PLAIN and _PLAIN[name](value) for name, value in config.items())
    if not fitting or any(name not in config for name in (*SIZES, "vocab_size", "model_type")):
        return False
    hidden, heads, pad = config["hidden_size"], config["num_attention_heads"], config.get("pad_token_id")
    groups = config.get("num_key_value_heads") or heads
    divides = heads % groups == 0 and (config.get("head_dim") or hidden % heads == 0)
    return bool(divides) and (pad is None or (type(pad) is int and 0 <= pad < config["vocab_size"]))


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a plain config, in the order and by the names of transformers'
    module.

    The output embedding is left out if it is tied.
    """
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], head_dim(config)
    queries = config["num_attention_heads"] * width
    keys = (config.get("num_key_value_heads") or config["num_attention_heads"]) * width
    llama = config["model_type"] == "llama"
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layer: dict[str, tuple[int, ...]] = {}
    for name, shape in matrices.items():
        layer[f"{name}.weight"] = shape
        if llama and config.get("attention_bias" if name.startswith("self") else "mlp_bias"):
            layer[f"{name}.bias"] = shape[:1]
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes
