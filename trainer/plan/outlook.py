"""What a planned run will need: memory under each preset, time, network and disk, for `render`."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.model.size import parameters
from trainer.plan.cost import Compute, Disk, Network, compute_cost, disk_space, network_bytes
from trainer.plan.make import Plan
from trainer.plan.memory import Memory
from trainer.plan.presets import PresetFit, fits, memory_settings, per_mode


@dataclass(frozen=True)
class Outlook:
    """All that follows from the model's size; a plan that does not know the size has none."""

    compute: Compute
    presets: tuple[PresetFit, ...]
    """The chosen one first."""
    modes: dict[str, Memory]
    """Under the chosen preset, by mode of activation checkpointing."""
    network: Network
    disk: Disk


def planned_tokens(plan: Plan) -> list[tuple[int, int]]:
    """Return the tokens of each phase, and the length of its samples."""
    lengths = ((count, plan.recipe.seq_len_of(n)) for n, count in enumerate(plan.mixture.phase_samples))
    return [(count * length, length) for count, length in lengths]


def outlook(plan: Plan, gpu: str | None = None, mfu: float | None = None) -> Outlook | None:
    """Estimate what a run needs; `gpu` is a device's name as `devices.peak_flops` knows it."""
    recipe, config, layout = plan.recipe, plan.model_config, plan.layout
    if not config:
        return None
    ranks, parts = layout.world_size, planned_tokens(plan)
    settings = memory_settings(recipe, plan.preset, config, ranks, cuda=plan.cuda)
    saved = recipe.checkpoint
    return Outlook(
        compute_cost(config, parts, ranks, gpu=gpu, dtype=recipe.model.dtype, mfu=mfu),
        tuple(fits(recipe, config, ranks, plan.available, cuda=plan.cuda)),
        dict(per_mode(recipe, config, plan.preset, ranks, cuda=plan.cuda)),
        network_bytes(parameters(config), settings, layout.gradient_accumulation_steps),
        disk_space(
            config,
            sum(tokens for tokens, _ in parts),
            ranks,
            saved.keep_last,
            saved.keep_every,
            settings.state_width,
            settings.average,
        ),
    )
