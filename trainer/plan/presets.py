"""What each ds_config would need: the chosen one and the others beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenization.errors import UserError
from trainer.engine import ds_config
from trainer.plan.memory import WIDTHS, Memory, MemorySettings, Shape, estimate
from trainer.recipe.schema import EveryN, Recipe
from trainer.storage.shipped import shipped

SHIPPED = shipped("ds_configs")


@dataclass(frozen=True)
class PresetFit:
    """The memory of a run under one preset."""

    name: str
    chosen: bool
    memory: Memory | None
    """None if the run cannot use this preset."""
    largest_micro_batch: int
    """0 if not even one sample fits."""
    why_not: str | None = None


def memory_settings(
    recipe: Recipe,
    preset: Mapping[str, Any],
    config: Mapping[str, Any],
    world_size: int,
    *,
    cuda: bool,
    phase: int | None = None,
) -> MemorySettings:
    """Gather all that memory depends on beside the model's shape; without a `phase` the longest decides."""
    lengths = [recipe.seq_len_of(number) for number in range(len(recipe.phases))]
    seq_len = max(lengths) if phase is None else lengths[phase]
    plain, how = dict(preset), recipe.model.activation_checkpointing
    zero = ds_config.with_sizes(plain, config)
    return MemorySettings(
        stage=ds_config.stage(plain),
        world_size=world_size,
        seq_len=-(-seq_len // recipe.sequence_parallel_size),
        dtype=recipe.model.dtype,
        offload_optimizer=ds_config.offloads_optimizer(plain),
        offload_parameters=ds_config.offloads_parameters(plain),
        recompute="every_n" if isinstance(how, EveryN) else how,
        every_n=how.every_n if isinstance(how, EveryN) else 1,
        document_mask=recipe.document_mask != "none",
        attention=recipe.model.attention,
        device="cuda" if cuda else "cpu",
        state_width=WIDTHS[recipe.optimizer.state_dtype],
        average=recipe.model.average is not None,
        bucket=int(zero["reduce_bucket_size"]),
        live=int(zero.get("stage3_max_live_parameters", MemorySettings.live)),
        sub_group=int(zero.get("sub_group_size", 10**9)),  # DeepSpeed's default, which NVMe keeps
        overlap=bool(zero.get("overlap_comm")),
        node_copy=int(zero.get("zero_hpz_partition_size", 0)),
    )


def fits(
    recipe: Recipe, config: Mapping[str, Any], world_size: int, available: int, *, cuda: bool
) -> Iterator[PresetFit]:
    """Yield what the chosen preset needs, and then each other one beside it or of those that ship."""
    chosen = Path(recipe.deepspeed)
    others = {
        path.name: path for folder in (SHIPPED, chosen.parent) for path in sorted(folder.glob("*.json"))
    }
    others.pop(chosen.name, None)
    for path in (chosen, *others.values()):
        try:
            preset = ds_config.read_preset(path)
        except UserError:
            continue  # of another program; the chosen one has been checked
        yield _fit(recipe, config, preset, path, world_size, available, cuda=cuda)


def _fit(
    recipe: Recipe,
    config: Mapping[str, Any],
    preset: dict[str, Any],
    path: Path,
    world_size: int,
    available: int,
    *,
    cuda: bool,
) -> PresetFit:
    chosen = path == Path(recipe.deepspeed)
    if ds_config.stage(preset) == 0 and recipe.model.dtype != "fp32":
        return PresetFit(path.stem, chosen, None, 0, "needs fp32")
    if ds_config.offloads_optimizer(preset) and recipe.optimizer.state_dtype != "fp32":
        return PresetFit(path.stem, chosen, None, 0, "needs state_dtype fp32")
    settings = memory_settings(recipe, preset, config, world_size, cuda=cuda)
    memory = estimate(Shape.of(config), settings)
    return PresetFit(path.stem, chosen, memory, memory.largest_micro_batch(available))


def per_mode(
    recipe: Recipe, config: Mapping[str, Any], preset: Mapping[str, Any], world_size: int, *, cuda: bool
) -> Iterator[tuple[str, Memory]]:
    """Yield the memory of each mode of activation checkpointing under one preset."""
    chosen = memory_settings(recipe, preset, config, world_size, cuda=cuda)
    modes = {
        "none": ("none", 1),
        "every_n: 2": ("every_n", 2),
        "full": ("full", 1),
        "offload": ("offload", 1),
    }
    if chosen.recompute == "every_n":
        modes[f"every_n: {chosen.every_n}"] = ("every_n", chosen.every_n)
    for name, (recompute, every_n) in modes.items():
        settings = dataclasses.replace(chosen, recompute=recompute, every_n=every_n)
        yield name, estimate(Shape.of(config), settings)
