"""DeepSpeed configurations: a preset sets how memory is sharded, and the recipe sets everything else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import xxhash

from tokenization.errors import UserError, UserErrors, did_you_mean
from trainer.engine.layout import Layout
from trainer.recipe.schema import Recipe
from trainer.storage.shipped import find_preset

SHARDING = ("zero_optimization", "aio")
"""Fields of a DeepSpeed configuration that set how memory is sharded."""

DIAGNOSTICS = ("comms_logger", "flops_profiler", "memory_breakdown", "wall_clock_breakdown")
"""Fields that only change what DeepSpeed prints."""

OWNED_BY_RECIPE = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size (accumulation is derived)",
    "gradient_clipping": "optimizer.grad_clip",
    "optimizer": "optimizer",
    "scheduler": "phases.N.schedule",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
    "communication_data_type": "model.dtype",
    "activation_checkpointing": "model.activation_checkpointing",
    "tensorboard": "logging.tensorboard",
    "wandb": "logging.wandb_project",
    "steps_per_print": "logging.every_steps",
}
"""Fields of a DeepSpeed configuration that the recipe sets, and the recipe's field for each."""

FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
"""The 16-bit gradients of micro batches and ranks are added in fp32. A bf16 sum of 128 has twice the error of
one gradient: each addend is small beside the sum, and most of its digits are rounded away."""

OFFLOADED = ("offload_optimizer", "offload_param")
"""Sections of zero_optimization that keep something outside the GPU."""

WHOLE_BUCKET = 2**24
"""Gradients that ZeRO stage 0 copies into one buffer to add them over all ranks; DeepSpeed's default are 500
million, which is a second copy of all gradients of the models that stage 0 is for."""

SUB_GROUP = 100_000_000
"""Elements per rank that ZeRO-3 steps at a time. Each time it copies their fp32 gradients, 4 bytes each; by
default DeepSpeed takes 1e9, which is a copy of all gradients of a 7B model on 7 ranks."""

NVME_WEIGHTS = {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0}
"""DeepSpeed 0.19 trains with weights on NVMe only with these values."""


def read_preset(path: str | Path) -> dict[str, Any]:
    """Read a ds_config and refuse the fields that the recipe sets.

    Raises:
        UserError: no such file, not JSON, or `UserErrors` with one error for each field that is refused.
    """
    try:
        preset = json.loads(find_preset(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            "does not exist",
            field="deepspeed",
            value=str(path),
            fix="see ds_configs/, such as ds_configs/zero2.json",
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"is not a JSON file ({error})", file=path) from error
    if not isinstance(preset, dict) or "zero_optimization" not in preset:
        raise UserError(
            "has no zero_optimization", file=path, fix='write {"zero_optimization": {"stage": 2}}'
        )
    problems = [
        UserError(
            "is set by the recipe, not by the ds_config",
            file=path,
            field=field,
            fix=f"set {OWNED_BY_RECIPE[field]} in the recipe",
        )
        for field in preset
        if field in OWNED_BY_RECIPE
    ]
    problems += [
        UserError("is not a memory-sharding setting", file=path, field=field, fix="remove it")
        for field in preset
        if field not in (*SHARDING, *DIAGNOSTICS, *OWNED_BY_RECIPE)
    ]
    zero = preset["zero_optimization"]
    if not isinstance(zero, dict):
        fix = 'write {"zero_optimization": {"stage": 2}}'
        problems.append(
            UserError("is not a mapping", file=path, field="zero_optimization", value=zero, fix=fix)
        )
    elif type(zero.get("stage", 0)) is not int or zero.get("stage", 0) not in range(4):
        field, fix = "zero_optimization.stage", "use 0, 1, 2 or 3"
        told = json.dumps(zero["stage"])
        problems.append(UserError(f"{told} is not a ZeRO stage", file=path, field=field, fix=fix))
    problems += [
        UserError("is not a mapping", file=path, field=field, value=preset[field], fix="correct or remove it")
        for field in (*SHARDING[1:], *DIAGNOSTICS[:2])
        if field in preset and not isinstance(preset[field], dict)
    ]
    if problems:
        raise UserErrors(problems)
    return preset


def check_known(preset: dict[str, Any], path: str | Path) -> None:
    """Check every field of zero_optimization as DeepSpeed will: its name, its type and its value.

    DeepSpeed itself is imported for it, which takes seconds, unless all is as in the presets that ship.

    Raises:
        UserErrors: one for each field.
    """
    if _is_plain(preset["zero_optimization"], _PLAIN):
        return
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import BaseModel, ValidationError

    try:
        DeepSpeedZeroConfig(**preset["zero_optimization"])
    except ValidationError as error:
        problems = []
        for found in error.errors():
            *above, name = (str(part) for part in found["loc"])
            model: type[BaseModel] | None = DeepSpeedZeroConfig
            for part in above:
                model = _section(model, part)
            known = model.model_fields if model is not None else {}
            what, fix = found["msg"], "see DeepSpeed's documentation of zero_optimization"
            if found["type"] == "extra_forbidden":
                what, fix = "is not a field that DeepSpeed knows", did_you_mean(name, known) or fix
            field = ".".join(("zero_optimization", *above, name))
            value = json.dumps(found["input"])
            problems.append(UserError(f"{value}: {what}", file=path, field=field, fix=fix))
        raise UserErrors(problems) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(str(error), file=path, field="zero_optimization") from error


_OFFLOAD: Mapping[str, Any] = {"device": ("none", "cpu", "nvme"), "nvme_path": str, "pin_memory": bool}

_PLAIN: Mapping[str, Any] = {
    "stage": (0, 1, 2, 3),
    "overlap_comm": bool,
    "contiguous_gradients": bool,
    "offload_optimizer": {**_OFFLOAD, "buffer_count": int},
    "offload_param": _OFFLOAD,
    "reduce_bucket_size": int,
    "allgather_bucket_size": int,
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "zero_quantized_weights": bool,
    "zero_hpz_partition_size": int,
    "zero_quantized_gradients": bool,
}
"""Fields of zero_optimization that are surely right, with their type or their values."""


def _is_plain(section: Any, plain: Mapping[str, Any]) -> bool:
    """Tell whether a section is surely one that DeepSpeed takes."""
    if not isinstance(section, dict) or not section.keys() <= plain.keys():
        return False
    for name, value in section.items():
        wanted = plain[name]
        if isinstance(wanted, Mapping):
            fits = _is_plain(value, wanted)
        elif isinstance(wanted, tuple):
            fits = type(value) is type(wanted[0]) and value in wanted
        else:
            fits = type(value) is wanted and (wanted is not int or value >= 1)
        if not fits:
            return False
    return True


def _section(model: Any, name: str) -> Any:
    """Return the class of a section of DeepSpeed's configuration; None if it is not known."""
    field = model.model_fields.get(name) if model is not None else None
    kinds = [field.annotation, *get_args(field.annotation)] if field is not None else []
    return next((kind for kind in kinds if hasattr(kind, "model_fields")), None)


def stage(preset: dict[str, Any]) -> int:
    """Return the ZeRO stage, 0 to 3."""
    return int(preset["zero_optimization"].get("stage", 0))


def _offload_device(preset: dict[str, Any], what: str) -> str:
    """Return `none`, `cpu` or `nvme`; a section or a device of null means none, as for DeepSpeed."""
    return str((preset["zero_optimization"].get(what) or {}).get("device") or "none")


def offloads_optimizer(preset: dict[str, Any]) -> bool:
    """Tell whether the optimizer states are kept in host memory or on NVMe."""
    return _offload_device(preset, "offload_optimizer") != "none"


def offloads_parameters(preset: dict[str, Any]) -> bool:
    """Tell whether the weights are kept in host memory or on NVMe (ZeRO-3 only)."""
    return _offload_device(preset, "offload_param") != "none"


def nvme_path(preset: dict[str, Any], what: str) -> Path | None:
    """Return the directory that `offload_optimizer` or `offload_param` swaps to; None if it does not swap.

    Raises:
        UserError: it swaps, and names no directory.
    """
    if _offload_device(preset, what) != "nvme":
        return None
    path = preset["zero_optimization"][what].get("nvme_path")
    if not path:
        field = f"zero_optimization.{what}.nvme_path"
        raise UserError("is missing", field=field, fix="give a directory on each node's own disk")
    return Path(path)


def swap_folders(config: dict[str, Any]) -> set[Path]:
    """Return the folders that a completed configuration swaps to; they hold only files of this run."""
    return {path for what in OFFLOADED if (path := nvme_path(config, what)) is not None}


def check_saved(preset: dict[str, Any], recipe: Recipe) -> None:
    """Check, before training, that checkpoints can hold all weights and optimizer states.

    Raises:
        UserErrors: some would be kept where checkpoints cannot read them.
    """
    zero, file = preset["zero_optimization"], recipe.deepspeed
    problems = []
    nvme = [what for what in OFFLOADED if nvme_path(preset, what) is not None]
    if nvme and stage(preset) != 3:
        fix = "use ds_configs/zero3-nvme.json"
        field = f"zero_optimization.{nvme[0]}.device"
        problems.append(UserError("needs ZeRO stage 3", file=file, field=field, value="nvme", fix=fix))
    if nvme and recipe.checkpoint.asynchronous:
        what = f"would copy the states to host memory, and {file} keeps them on NVMe because they do not fit"
        problems.append(UserError(what, field="checkpoint.asynchronous", value=True, fix="remove it"))
    if nvme and recipe.model.average is not None:
        what, fix = f"cannot be kept where {file} keeps states on NVMe", "offload to cpu there, or remove it"
        problems.append(UserError(what, field="model.average", fix=fix))
    if recipe.optimizer.state_dtype == "bf16" and offloads_optimizer(preset):
        what = f"is for moments on the GPU, and {file} keeps them in host memory, in fp32"
        problems.append(UserError(what, field="optimizer.state_dtype", value="bf16", fix="remove it"))
    if "offload_param" in nvme:
        problems += _unlike_nvme_weights(zero, recipe)
    offload = zero.get("offload_optimizer") or {}
    elsewhere = {
        "zero_optimization.offload_optimizer.ratio": offload.get("ratio", 1.0) != 1.0,
        "zero_optimization.offload_optimizer.super_offload": bool(offload.get("super_offload")),
        "zero_optimization.zenflow": bool(zero.get("zenflow")),
    }
    problems += [
        UserError(
            "keeps states in a second optimizer, which checkpoints do not save",
            file=file,
            field=field,
            fix="remove it",
        )
        for field, used in elsewhere.items()
        if used
    ]
    if problems:
        raise UserErrors(problems)


def _unlike_nvme_weights(zero: dict[str, Any], recipe: Recipe) -> list[UserError]:
    """Find what DeepSpeed or this trainer cannot do while weights are swapped to NVMe."""
    fix = "or set offload_param to cpu: the weights are a small part of the memory that a run needs"
    problems = [
        UserError(
            "makes DeepSpeed swap a weight in twice or run out of buffers (its issue 3062)",
            file=recipe.deepspeed,
            field=f"zero_optimization.{field}",
            value=value,
            fix=f"remove it, {fix}",
        )
        for field in NVME_WEIGHTS
        if (value := zero.get(field, 0)) != 0
    ]
    problems += [
        UserError(
            "leaves weights frozen, and frozen weights cannot be saved from NVMe",
            field=f"phases.{number}.train",
            value=phase.train,
            fix=f"set zero_optimization.offload_param.device to cpu in {recipe.deepspeed}",
        )
        for number, phase in enumerate(recipe.phases)
        if phase.train != "all"
    ]
    return problems


def complete(
    preset: dict[str, Any], recipe: Recipe, layout: Layout, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the whole DeepSpeed configuration: the preset, the recipe's settings, and sizes from the model's.

    `model` are the fields of its Hugging Face configuration.

    Raises:
        UserError: the recipe asks for a 16-bit dtype at ZeRO stage 0.
    """
    zero = with_sizes(preset, model)
    if stage(preset) == 0 and recipe.model.dtype != "fp32":
        raise UserError(
            "needs fp32 master weights, and ZeRO stage 0 keeps none",
            field="model.dtype",
            value=recipe.model.dtype,
            fix="use ds_configs/zero1.json, or dtype: fp32",
        )
    for what in OFFLOADED:
        if (path := nvme_path(preset, what)) is not None:
            # DeepSpeed names its files by rank alone: two runs on one node would share them.
            zero[what] = {**zero[what], "nvme_path": str(path / f"rewarm-{_key(recipe.directory)}")}
    if nvme_path(preset, "offload_param") is not None:
        zero |= NVME_WEIGHTS
        hidden_size = int(model["hidden_size"])
        widest = max(int(model["vocab_size"]), int(model["intermediate_size"]), 3 * hidden_size)
        zero["offload_param"].setdefault("buffer_size", math.ceil(widest * hidden_size / layout.world_size))
    config = {
        **preset,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
        # At stage 0 our engine clips, since it must know the norm before the step anyway.
        "gradient_clipping": recipe.optimizer.grad_clip if stage(preset) else 0.0,
    }
    if recipe.optimizer.state_dtype == "bf16":
        config["zero_allow_untested_optimizer"] = True  # `adamw.NarrowAdamW`, which steps as torch's does
    if recipe.model.dtype != "fp32":
        config[recipe.model.dtype] = {"enabled": True}
        config |= FP32_SUMS
        if recipe.model.dtype == "bf16" and stage(preset) == 1 and not offloads_optimizer(preset):
            # DeepSpeed would take another optimizer; see `engine.accumulate_in_fp32`.
            config["data_types"] = {}
    return config


def with_sizes(preset: dict[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return zero_optimization with the sizes that it leaves open, in parameters, from those of the model.

    A bucket is as large as a matrix of the model. ZeRO-2 takes the largest of a layer: it would keep a rank's
    16-bit gradients of larger ones until the backward pass ends, two thirds of those of a LLaMA.
    """
    zero, hidden = dict(preset["zero_optimization"]), int(model["hidden_size"])
    square = max(hidden * hidden, 2**20)
    largest = max(hidden * int(model["intermediate_size"]), square)
    zero.setdefault("reduce_bucket_size", largest if stage(preset) == 2 else square)
    if stage(preset) in (1, 2):
        zero.setdefault("allgather_bucket_size", 4 * square)
    if stage(preset) == 3:
        zero.setdefault("stage3_prefetch_bucket_size", int(0.9 * square))
        zero.setdefault("stage3_param_persistence_threshold", 10 * hidden)
        if all(
            _offload_device(preset, what) != "nvme" for what in OFFLOADED
        ):  # NVMe reads a sub-group at a time
            zero.setdefault("sub_group_size", SUB_GROUP)
    return zero


def _key(directory: Path) -> str:
    """Return a short key that is different for every run directory."""
    return xxhash.xxh3_64_hexdigest(str(directory.resolve()).encode())
