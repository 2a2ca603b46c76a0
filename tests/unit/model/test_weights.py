"""Names and shapes of weights from the config alone are those of the model that transformers builds."""

import pytest
import torch

from trainer.model import architecture
from trainer.model.build import make_empty
from trainer.model.weights import is_plain, weight_shapes

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 90,
    "model_type": "llama",
}


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 2},
        {"head_dim": 16},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_theta": 10000.0, "hidden_act": "gelu", "pad_token_id": 0},
    ],
)
def test_a_plain_config_has_the_weights_that_transformers_makes(kind, fields):
    if kind == "mistral" and "mlp_bias" in fields:
        fields = {}  # Mistral has no such fields
    config = {
        **TINY,
        **fields,
        "model_type": kind,
        "num_key_value_heads": fields.get("num_key_value_heads", 4),
    }
    assert is_plain(config)
    with torch.device("meta"):
        hf = make_empty(config, {"dtype": torch.bfloat16})
    built = {name: tuple(parameter.shape) for name, parameter in hf.named_parameters()}
    assert weight_shapes(config) == built
    assert list(weight_shapes(config)) == list(built)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "sliu"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "unknown"}},
        {"rms_norm_eps": "small"},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"pad_token_id": 90},
        {"vocab_size": True},
        {"quantization_config": {"quant_method": "gptq"}},
        {"model_type": "gpt_neox"},
        {"model_type": "qwen2"},
        {"some_field_of_the_future": 1},
    ],
)
def test_whatever_is_doubtful_is_asked_of_transformers(fields):
    assert not is_plain({**TINY, **fields})


def test_the_sizes_that_a_plain_config_must_have_are_those_of_every_architecture():
    for name in (*architecture.SIZES, "vocab_size", "model_type"):
        assert not is_plain({field: value for field, value in TINY.items() if field != name})
