"""config.json for readers of either form: what one of them says, the other says too."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig

from trainer.model.rope import with_both_forms

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
