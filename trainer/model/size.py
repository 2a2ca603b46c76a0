"""A model's size and its floating-point operations, from its Hugging Face config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def matmul_parameters(config: Mapping[str, Any]) -> int:
    """Count the weights that a token is multiplied with: all matrices and the output embedding (tied or
    not), without the input embedding, which is a look-up."""
    hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads, width = config["num_attention_heads"], head_dim(config)
    groups = config.get("num_key_value_heads") or heads
    attention = hidden * width * (2 * heads + 2 * groups)  # query and output; key and value
    matrices = 2 if config["model_type"] == "gpt_neox" else 3  # up and down; gate
    return layers * (attention + matrices * hidden * inner) + config["vocab_size"] * hidden


def parameters(config: Mapping[str, Any]) -> int:
    """Count all weights of the model: matrices, embeddings, norms and biases."""
    hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads, width = config["num_attention_heads"], head_dim(config)
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    embedding = 0 if config.get("tie_word_embeddings") else config["vocab_size"] * hidden
    total = matmul_parameters(config) + embedding
    if config["model_type"] == "gpt_neox":
        biases = queries + 2 * keys + hidden if config.get("attention_bias", True) else 0
        return total + layers * (4 * hidden + biases + inner + hidden) + 2 * hidden
    biased = config["model_type"] == "qwen2"  # Qwen2 has biases on query, key and value alone
    biases = queries + 2 * keys if biased or config.get("attention_bias") else 0
    biases += hidden if config.get("attention_bias") else 0
    biases += 2 * inner + hidden if config.get("mlp_bias") else 0
    return total + layers * (2 * hidden + biases) + hidden


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def flops_per_token(config: Mapping[str, Any], seq_len: int) -> int:
    """Count the FLOPs of forward and backward per token: `6 N + 12 · layers · heads · head_dim · seq_len`.

    N is `matmul_parameters`. The causal mask is not deducted and recomputation is not counted (the
    convention of Chowdhery et al. 2022, appendix B), so that numbers are comparable across trainers.
    """
    attention = config["num_hidden_layers"] * config["num_attention_heads"] * head_dim(config) * seq_len
    return 6 * matmul_parameters(config) + 12 * attention
