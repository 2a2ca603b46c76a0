"""Sizes and FLOPs against numbers worked out by hand, and against the models themselves."""

from __future__ import annotations

import pytest

from tests.helpers.model_tiny import INIT, build, recipe
from trainer.machine.devices import peak_flops
from trainer.model.architecture import resolve_config
from trainer.model.size import flops_per_token, matmul_parameters, parameters

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
PYTHIA_410M = {
    "model_type": "gpt_neox",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 50304,
}


@pytest.mark.parametrize(
    ("config", "seq_len", "flops"),
    [
        # 6 · (32 · (4 · 4096² + 3 · 4096 · 11008) + 32000 · 4096) + 12 · 32 · 4096 · 4096
        (LLAMA_7B, 4096, 46_084_915_200),
        ({**LLAMA_7B, "vocab_size": 55296}, 4096, 46_657_437_696),
        # 6 · (80 · (2 · 8192² + 2 · 8192 · 1024 + 3 · 8192 · 28672) + 32000 · 8192) + 12 · 80 · 8192 · 4096
        (LLAMA_70B, 4096, 444_491_366_400),
        # 6 · (24 · (4 · 1024² + 2 · 1024 · 4096) + 50304 · 1024) + 12 · 24 · 1024 · 2048
        (PYTHIA_410M, 2048, 2_724_986_880),
    ],
)
def test_flops_per_token_of_known_models(config, seq_len, flops):
    assert flops_per_token(config, seq_len) == flops


@pytest.mark.parametrize(
    ("config", "count"),
    [(LLAMA_7B, 6_738_415_616), (LLAMA_70B, 68_976_648_192), (PYTHIA_410M, 405_334_016)],
)
def test_parameters_of_known_models_are_those_of_their_publishers(config, count):
    assert parameters(config) == count


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("tied", ["false", "true"])
def test_parameters_are_those_of_the_model(kind, tied):
    plan = recipe(**INIT[kind], tie_word_embeddings=tied)
    config, causal = resolve_config(plan, 90), build(plan, 90)
    assert parameters(config) == sum(parameter.numel() for parameter in causal.parameters())
    matrices = {n: p.numel() for n, p in causal.named_parameters() if p.ndim == 2 and "embed" not in n}
    head = 0 if tied == "false" else 90 * 32  # a tied output embedding bears the input's name
    assert matmul_parameters(config) == sum(matrices.values()) + head


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H800", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peaks_are_the_datasheets(device, teraflops):
    assert peak_flops(device, "bf16") == peak_flops(device, "fp16") == teraflops * 1e12


@pytest.mark.parametrize(
    "device",
    ["cpu", "Tesla T4", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10"],
)
def test_an_unknown_device_has_no_peak(device):
    assert peak_flops(device, "bf16") is None


def test_fp32_has_no_peak():
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") is None
