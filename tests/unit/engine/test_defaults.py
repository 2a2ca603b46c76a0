"""What changes numbers stands in the configuration: no default of DeepSpeed decides it."""

import json
from pathlib import Path

import pytest
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from tests.helpers import runs
from trainer.engine.defaults import with_defaults
from trainer.engine.ds_config import complete
from trainer.engine.layout import Layout
from trainer.recipe.schema import Recipe

MODEL = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 320}
CASES = [
    (stage, dtype) for stage in range(4) for dtype in ("fp32", "bf16", "fp16") if stage or dtype == "fp32"
]

NO_NUMBERS = {
    "allgather_bucket_size", "allgather_sequential", "cpu_offload", "cpu_offload_param",
    "cpu_offload_use_pin_memory", "elastic_checkpoint", "enable_sanity_checks",
    "gather_16bit_weights_on_model_save", "leaf_module", "load_from_fp32_weights", "log_trace_cache_warnings",
    "max_live_parameters", "max_reuse_distance", "memory_efficient_linear", "model_persistence_threshold",
    "module_granularity_threshold", "offload_optimizer", "offload_param", "override_module_apply",
    "param_persistence_threshold", "pipeline_loading_checkpoint", "prefetch_bucket_size",
    "save_muon_momentum_buffer_in_memory", "stage3_gather_fp16_weights_on_model_save",
    "use_all_reduce_for_fetch_params", "zenflow",
}  # fmt: skip
"""Fields of zero_optimization that say when and where something is moved, or what rewarm never uses."""


def by_recipe(stage, dtype, **zero):
    model = {"tokenizer": "t", "dtype": dtype, "init": {"hidden_size": 8}}
    recipe = Recipe.model_validate(runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json", model=model))
    return complete({"zero_optimization": {"stage": stage, **zero}}, recipe, Layout(2, 4, 2), MODEL)


def completed(stage, dtype, **zero):
    return with_defaults(by_recipe(stage, dtype, **zero))


@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_every_field_that_changes_numbers_is_written(stage, dtype):
    """A field that a new DeepSpeed adds fails here until somebody has decided what it is."""
    config = completed(stage, dtype)
    zero = {name.removeprefix("stage3_") for name in config["zero_optimization"]}
    assert set(DeepSpeedZeroConfig.model_fields) - NO_NUMBERS - zero == set()
    assert "gradient_clipping" in config
    assert config["communication_data_type"] == "fp32"
    for name, section in (("bf16", DeepSpeedBF16Config), ("fp16", DeepSpeedFP16Config)):
        assert (name in config) == (name == dtype)
        if name == dtype:
            assert set(config[name]) == set(section.model_fields)
    json.dumps(config)


@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_what_is_written_is_what_this_deepspeed_does_anyway(stage, dtype):
    written = completed(stage, dtype)["zero_optimization"]
    given = by_recipe(stage, dtype)["zero_optimization"]
    assert DeepSpeedZeroConfig(**written) == DeepSpeedZeroConfig(**given)
    if dtype == "bf16":
        assert DeepSpeedBF16Config(**completed(stage, dtype)[dtype]) == DeepSpeedBF16Config(enabled=True)
    if dtype == "fp16":
        assert DeepSpeedFP16Config(**completed(stage, dtype)[dtype]) == DeepSpeedFP16Config(enabled=True)


def test_a_preset_has_the_last_word():
    zero = completed(3, "bf16", zero_quantized_gradients=True, zero_hpz_partition_size=2)["zero_optimization"]
    assert (zero["zero_quantized_gradients"], zero["zero_hpz_partition_size"]) == (True, 2)
    offload = completed(3, "bf16", offload_optimizer={"device": "cpu"})["zero_optimization"]
    assert offload["offload_optimizer"] == {"device": "cpu", "ratio": 1.0, "super_offload": False}
