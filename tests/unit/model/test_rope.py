"""config.json for readers of either form: what one of them says, the other says too."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig

from tests.helpers.model_tiny import INIT, config_problems, recipe
from tokenization.errors import UserError
from trainer.model.architecture import resolve_config
from trainer.model.rope import phase_configs, with_both_forms, with_rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@given(theta=st.floats(1.0, 1e9), factor=st.floats(1.0, 64.0))
@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "default"])
def test_theta_and_scaling_stand_in_both_forms_and_are_read_back_alike(kind, theta, factor):
    scaling = {**(LLAMA3 if kind == "llama3" else {}), "rope_type": kind, "factor": factor}
    scaling = {"rope_type": kind} if kind == "default" else scaling
    new = {"model_type": "llama", "rope_parameters": {**scaling, "rope_theta": theta}}
    both = with_both_forms(new)
    assert both["rope_parameters"] == new["rope_parameters"]
    assert both["rope_theta"] == theta
    assert both.get("rope_scaling") == (None if kind == "default" else scaling)
    for form in (both, {name: value for name, value in both.items() if name != "rope_parameters"}):
        assert AutoConfig.for_model(**form).rope_parameters == new["rope_parameters"]


def test_gpt_neox_has_names_of_its_own():
    new = {
        "model_type": "gpt_neox",
        "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
    }
    both = with_both_forms(new)
    assert both == {**new, "rotary_emb_base": 25000.0, "rotary_pct": 0.5}
    del both["rope_parameters"]
    assert AutoConfig.for_model(**both).rope_parameters == new["rope_parameters"]


def test_the_older_form_is_left_as_it_is():
    old = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16"}
    assert with_both_forms(old) == old


def test_transformers_warns_of_nothing_in_both_forms(tmp_path, capfd):
    both = with_both_forms(LlamaConfig(rope_parameters={**LLAMA3, "rope_theta": 5e5}).to_dict())
    (tmp_path / "config.json").write_text(json.dumps(both))
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == both["rope_parameters"]
    assert capfd.readouterr().err == ""


# ---- phases with another seq_len or RoPE


def changed(rope, seq_len=64, **config):
    """The rope_parameters of a model after a phase, and its max_position_embeddings."""
    fields = {**LlamaConfig().to_dict(), "max_position_embeddings": 32, **config}
    found = with_rope(fields, rope, seq_len, "phases.1.rope")
    # What transformers makes of it is what it says, and so it is in both forms of config.json.
    assert AutoConfig.for_model(**found).rope_parameters == found["rope_parameters"]
    assert AutoConfig.for_model(**with_both_forms(found)).rope_parameters == found["rope_parameters"]
    return found["rope_parameters"], found["max_position_embeddings"]


@pytest.mark.parametrize(
    ("config", "rope", "expected"),
    [
        # theta alone: the scaling that the model has stays
        ({}, {"rope_theta": "1e6"}, {"rope_theta": 1_000_000, "rope_type": "default"}),
        (
            {"rope_parameters": None, "rope_theta": 5e5},
            {"rope_theta": 7},
            {"rope_theta": 7, "rope_type": "default"},
        ),
        # a scaling alone: theta stays, and the older scaling goes as a whole
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            {"rope_type": "linear", "factor": "4.0"},
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0},
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            {"rope_type": "yarn", "factor": 2.0},
            {"rope_theta": 5e5, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
        ),
        # the context without a scaling is that of the first one
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 8}},
            {"rope_type": "yarn", "factor": 8.0},
            {"rope_theta": 5e5, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8},
        ),
    ],
)
def test_a_phase_changes_theta_or_the_scaling(config, rope, expected):
    assert changed(rope, **config) == (expected, 64)


def test_the_context_never_shrinks():
    assert changed({"rope_theta": 1e6}, seq_len=16)[1] == 32


@pytest.mark.parametrize(
    ("rope", "line"),
    [
        (
            {"rope_thta": 1},
            "phases.1.rope.rope_thta: is not a field of rope_parameters; did you mean 'rope_th",
        ),
        (
            {"rope_type": "yarm", "factor": 2},
            "phases.1.rope.rope_type: 'yarm' is not a kind of RoPE; did you",
        ),
        ({"rope_type": "yarn"}, "phases.1.rope: is refused by transformers (Missing required keys in"),
    ],
)
def test_a_rope_that_transformers_does_not_know(rope, line):
    with pytest.raises(UserError) as caught:
        changed(rope)
    assert line in str(caught.value)


SHORT = {**INIT["llama"], "max_position_embeddings": 16}


def phases(*fields):
    """A recipe with further phases that have these fields, of a model with a context of 16."""
    first = recipe(**SHORT).phases[0]
    later = [first.model_copy(update={"name": f"p{n}", **one}) for n, one in enumerate(fields)]
    return recipe(**SHORT).model_copy(update={"phases": (first, *later)})


def test_longer_samples_need_a_longer_context():
    rope = {"rope_theta": "1e6"}
    (problem,) = config_problems(phases({"seq_len": 32}), 90)
    assert "phases.1.seq_len: 32 is above the model's max_position_embeddings 16; shorten it, or give" in str(
        problem
    )
    assert config_problems(phases({"seq_len": 32, "rope": rope}), 90) == []
    # What a phase has made of the model stays.
    assert config_problems(phases({"seq_len": 32, "rope": rope}, {}, {"seq_len": 16}), 90) == []
    (problem,) = config_problems(phases({"seq_len": 32, "rope": rope}, {"seq_len": 64}), 90)
    assert "phases.2.seq_len: 64 is above the model's max_position_embeddings 32" in str(problem)


def test_a_run_that_goes_on_makes_no_change_twice():
    asked = phases({"seq_len": 32, "rope": {"rope_type": "yarn", "factor": 2.0}}, {})
    planned = list(phase_configs(asked, resolve_config(asked, 90)))
    assert [one["max_position_embeddings"] for one in planned] == [16, 32, 32]
    assert planned[1] == planned[2] != planned[0]
    # From the checkpoint of phase 0 at its end, and of phase 1.
    assert list(phase_configs(asked, planned[0], 1)) == planned[1:]
    assert list(phase_configs(asked, planned[1], 1, begun=True)) == planned[1:]
