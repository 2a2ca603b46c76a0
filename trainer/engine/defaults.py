"""Every default of DeepSpeed that changes numbers, written out: an upgrade must not change a run.

DeepSpeed moves its defaults: 0.19.3 made `gradient_clipping` 1 instead of 0, and let bf16 skip steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REDUCTION: Mapping[str, Any] = {
    "gradient_allreduce_op": "mean",
    "gradient_predivide_factor": 1.0,
    "prescale_gradients": False,
    "managed_gradient_accumulation": True,
    "communication_data_type": "fp32",
    "seq_parallel_communication_data_type": "fp32",
    "torch_autocast": {"enabled": False},
}
"""How gradients are scaled, added over ranks and micro batches, and in which precision."""

DATA_TYPES: Mapping[str, Any] = {"keep_in_fp32_modules": "auto"}
"""Buffers that a model names stay in fp32."""

PRECISION: Mapping[str, Mapping[str, Any]] = {
    "bf16": {
        "bf16_master_weights_and_grads": False,
        "bf16_optimizer_states": False,
        "check_grad_overflow": True,
        "immediate_grad_update": False,
    },
    "fp16": {
        "auto_cast": False,
        "consecutive_hysteresis": False,
        "fp16_master_weights_and_grads": False,
        "hysteresis": 2,
        "initial_scale_power": 16,
        "loss_scale": 0.0,
        "loss_scale_window": 1000,
        "min_loss_scale": 1,
    },
}
"""What is kept in 16 bits, which steps are skipped, and how the loss is scaled."""

ZERO: Mapping[str, Any] = {
    "allgather_partitions": True,
    "compute_grad_norm": True,
    "contiguous_gradients": True,
    "ignore_unused_parameters": True,
    "legacy_stage1": False,
    "parameter_alignment": False,
    "reduce_scatter": True,
    "round_robin_gradients": False,
    "sub_group_size": 1_000_000_000,
    "use_multi_rank_bucket_allreduce": True,
    "zero_hpz_partition_size": 1,
    "zero_quantized_gradients": False,
    "zero_quantized_nontrainable_weights": False,
    "zero_quantized_weights": False,
}
"""How the optimizer states and gradients are cut, and what is rounded on its way between ranks."""

OFFLOADED_OPTIMIZER: Mapping[str, Any] = {"ratio": 1.0, "super_offload": False}
"""Which of several optimizers steps the weights."""


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a DeepSpeed configuration by every default that changes numbers.

    What it says already stays. Fields of sections that this version of DeepSpeed does not know are left
    out: it would refuse them.
    """
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    zero = dict(config["zero_optimization"])
    overlap = {"overlap_comm": zero.get("stage", 0) == 3}
    zero = _known(DeepSpeedZeroConfig, {**ZERO, **overlap}) | zero
    if zero.get("offload_optimizer"):
        known = _known(DeepSpeedZeroOffloadOptimizerConfig, OFFLOADED_OPTIMIZER)
        zero["offload_optimizer"] = known | zero["offload_optimizer"]
    found = {**REDUCTION, **config, "zero_optimization": zero}
    found["data_types"] = {**DATA_TYPES, **config.get("data_types", {})}
    for name, section in (("bf16", DeepSpeedBF16Config), ("fp16", DeepSpeedFP16Config)):
        if name in config:
            found[name] = _known(section, PRECISION[name]) | config[name]
    return found


def _known(section: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in section.model_fields}
