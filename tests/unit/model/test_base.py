"""A base's files against its config.json: what does not fit is named before a weight is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.model_tiny import INIT, build, from_base, recipe
from tokenization.errors import UserError, UserErrors
from trainer.model.architecture import EMBEDDINGS, resolve_config
from trainer.model.base import check_weights, expected_weights

PIECES = 90
FILE = "model.safetensors"


@pytest.fixture
def base(tmp_path):
    """A saved model; its config and its weights may be changed."""

    def make(kind="llama", weights=None, **fields):
        build(recipe("seed=5", **INIT[kind]), PIECES).hf.save_pretrained(tmp_path)
        held = load_file(tmp_path / FILE)
        if weights:
            save_file(weights(held), tmp_path / FILE, metadata={"format": "pt"})
        told = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**told, **fields}))
        return tmp_path

    return make


def check(folder):
    config = resolve_config(from_base(folder), PIECES)
    check_weights(folder, config, expected_weights(config))


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_saves_fits(tmp_path, kind, tied):
    own = build(recipe(**{**INIT[kind], "tie_word_embeddings": str(tied).lower()}), PIECES)
    own.hf.save_pretrained(tmp_path, max_shard_size="20kB")
    check(tmp_path)


@pytest.mark.parametrize("kind", INIT)
def test_two_matrices_of_a_tied_model_are_refused_and_two_copies_of_one_are_not(base, kind):
    first, second = EMBEDDINGS[kind]
    folder = base(kind, tie_word_embeddings=True)
    with pytest.raises(
        UserErrors, match=f"ties its embeddings .* {first} and {second}, which differ; set tie"
    ):
        check(folder)
    check(base(kind, lambda held: {**held, second: held[first].clone()}, tie_word_embeddings=True))


@pytest.mark.parametrize(
    ("kind", "fields", "lost"),
    [
        ("llama", {"num_hidden_layers": 1}, "9 weights .* model.layers.1"),
        ("mistral", {"num_hidden_layers": 1}, "9 weights .* model.layers.1"),
        ("gpt_neox", {"num_hidden_layers": 1}, "12 weights .* gpt_neox.layers.1"),
    ],
)
def test_weights_that_the_config_does_not_know_are_named(base, kind, fields, lost):
    with pytest.raises(UserErrors, match=f"holds {lost}.*restore the config.json"):
        check(base(kind, **fields))


def test_a_bias_that_the_config_does_not_know_is_named_by_plan_and_by_the_load(base):
    name = "model.layers.0.self_attn.q_proj.bias"
    folder = base(weights=lambda held: {**held, name: torch.ones(32)})
    with pytest.raises(UserErrors, match=name):
        check(folder)
    with pytest.raises(UserError, match=name):
        build(from_base(folder), PIECES)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_hidden_layers": 3}, "lacks 9 weights .*model.layers.2"),
        ({"attention_bias": True}, "lacks 8 weights .*self_attn.q_proj.bias"),
        ({"intermediate_size": 64}, r"of other shapes .* is \[48, 32\] and not \[64, 32\]"),
        ({"vocab_size": 91}, r"model.embed_tokens.weight is \[90, 32\] and not \[91, 32\]"),
    ],
)
def test_weights_that_the_config_asks_for_are_there_in_their_shape(base, fields, told):
    with pytest.raises(UserErrors, match=told):
        check(base(**fields))


@pytest.mark.parametrize(
    "name", ["model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"]
)
def test_buffers_of_older_files_are_not_weights(base, name):
    folder = base(weights=lambda held: {**held, name: torch.ones(4)})
    check(folder)
    build(from_base(folder), PIECES)


def test_names_without_the_models_prefix_are_known(base):
    def short(held):
        return {name.removeprefix("model."): value for name, value in held.items()}

    check(base(weights=short))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_act": "siluu"}, "model.base.hidden_act: 'siluu' is not known to transformers"),
        ({"rope_parameters": {"rope_type": "twist", "rope_theta": 1e4}}, "rope_type: 'twist' is not known"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "cannot build .*factor"),
        ({"rms_norm_eps": "small"}, "cannot build .*rms_norm_eps"),
    ],
)
def test_a_config_that_cannot_be_built_is_one_line(base, fields, told):
    with pytest.raises(UserError, match=told) as caught:
        check(base(**fields))
    assert "\n" not in str(caught.value)
