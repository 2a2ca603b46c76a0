"""Where weights come from: a seed alone, or a base, to the bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.model_tiny import INIT, build, from_base, recipe, tokens
from tokenization.errors import UserError
from trainer.model.architecture import resolve_config
from trainer.model.build import build_model, check_trained

PIECES = 90


def values(causal) -> dict[str, torch.Tensor]:
    return dict(causal.hf.state_dict())


@pytest.mark.parametrize("kind", INIT)
def test_random_weights_depend_on_the_seed_alone(kind):
    torch.manual_seed(1)
    first = values(build(recipe(**INIT[kind]), PIECES))
    torch.manual_seed(2)
    torch.rand(3)
    again = values(build(recipe("model.activation_checkpointing=full", **INIT[kind]), PIECES))
    other = values(build(recipe("seed=1", **INIT[kind]), PIECES))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].ndim == 2]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("kind", INIT)
def test_random_weights_follow_the_architectures_rule(kind):
    for name, value in values(build(recipe(**{**INIT[kind], "hidden_size": 64}), PIECES)).items():
        if value.ndim == 2:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(value.mean().item()) < 0.002, name
        elif name.endswith("bias"):
            assert not value.any(), name
        elif name.endswith("weight"):
            assert torch.equal(value, torch.ones_like(value)), name


@pytest.mark.parametrize("weights", [True, False])
def test_building_draws_nothing_from_the_global_generator(weights):
    before = torch.get_rng_state()
    build(recipe(), PIECES, weights=weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_low_precision_weights_are_the_fp32_ones_rounded():
    exact = values(build(recipe(), PIECES))
    for dtype in (torch.bfloat16, torch.float16):
        name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
        rounded = build(recipe(f"model.dtype={name}"), PIECES)
        assert all(torch.equal(exact[key].to(dtype), value) for key, value in values(rounded).items())
        assert rounded.hf.base_model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("tied", ["false", "true"])
def test_a_base_is_loaded_to_the_bit(kind, tied, tmp_path):
    origin = build(recipe("seed=5", **INIT[kind], tie_word_embeddings=tied), PIECES)
    origin.hf.save_pretrained(tmp_path, max_shard_size="20kB")
    loaded = build(from_base(tmp_path), PIECES)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert all(torch.equal(value, values(loaded)[name]) for name, value in values(origin).items())
    assert loaded.hf.config.use_cache is False
    empty = build(from_base(tmp_path), PIECES, weights=False)
    assert {n: p.shape for n, p in empty.named_parameters()} == {
        n: p.shape for n, p in loaded.named_parameters()
    }
    two = empty.hf.get_input_embeddings().weight is empty.hf.get_output_embeddings().weight
    assert two == (tied == "true")


def test_a_base_is_loaded_in_the_recipes_dtype_with_its_attention(tmp_path):
    build(recipe(), PIECES).hf.save_pretrained(tmp_path)
    loaded = build(from_base(tmp_path, "model.dtype=bf16", "model.attention=eager"), PIECES)
    assert {value.dtype for value in values(loaded).values()} == {torch.bfloat16}
    assert loaded.hf.config._attn_implementation == "eager"


def test_a_base_without_one_of_its_weights_is_refused(tmp_path):
    build(recipe(), PIECES).hf.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks 1 weights, among them model.layers.1.mlp.up_proj.weight; copy"
    ):
        build(from_base(tmp_path), PIECES)


def test_a_base_with_a_weight_of_another_shape_is_refused(tmp_path):
    build(recipe(), PIECES).hf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(UserError, match="cannot be loaded"):
        build(from_base(tmp_path), PIECES)


@pytest.mark.parametrize("damage", ["truncated", "absent"])
def test_a_damaged_base_is_refused(tmp_path, damage):
    build(recipe(), PIECES).hf.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.unlink()
    with pytest.raises(UserError, match=f"model.base: '{tmp_path}' cannot be loaded"):
        build(from_base(tmp_path), PIECES)


def test_building_leaves_the_config_as_it_is():
    plan = recipe()
    config = resolve_config(plan, PIECES)
    before = copy.deepcopy(config)
    build_model(config, plan, PIECES)
    assert config == before


@pytest.mark.parametrize("kind", INIT)
def test_what_is_trained_is_checked_without_memory_under_the_names_of_the_built_model(kind):
    shape = {**INIT[kind], "hidden_size": 32_768}
    named = list(dict(build(recipe(**INIT[kind]), PIECES).named_parameters()))
    every = ", ".join(f"^{name}$" for name in named)
    good, bad = (recipe(f"phases.0.train=[{pattern}]", **shape) for pattern in (every, "nothing"))
    config = resolve_config(good, PIECES)
    assert check_trained(config, good, PIECES) == []
    (problem,) = check_trained(config, bad, PIECES)
    assert f"names are like {named[0]}" in str(problem)


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("how", ["init", "base"])
def test_the_row_of_the_padding_token_trains(kind, how, tmp_path):
    """Packed streams have no padding: where the padding token is EOS, it ends every document."""
    eos = 2
    plan = recipe(**INIT[kind], pad_token_id=eos, eos_token_id=eos)
    if how == "base":
        build(plan, PIECES).hf.save_pretrained(tmp_path)
        plan = from_base(tmp_path)
    causal = build(plan, PIECES)
    row = causal.hf.get_input_embeddings().weight
    assert row[eos].any()
    ids = tokens(2, 9, pieces=PIECES)
    ids[:, 4] = eos
    causal(ids[:, :-1], ids[:, 1:])[0].backward()
    assert row.grad[eos].any()
    assert causal.hf.config.pad_token_id == eos  # what a checkpoint and an export say
