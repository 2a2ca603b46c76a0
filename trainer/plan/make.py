"""The run before the run: everything that can be known, checked and decided without a process group."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenization.errors import UserErrors
from tokenization.shards.store import TokenStore
from tokenization.tokenizer import files
from trainer.checkpoint import manifest
from trainer.engine import ds_config
from trainer.engine import layout as layout_
from trainer.engine.layout import Layout
from trainer.machine.devices import available_bytes
from trainer.metrics.services import check_services
from trainer.mixer.description import MixtureDescription
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.model import architecture
from trainer.plan.checks import (
    ErrorCollector,
    check_trained_patterns,
    newest_checkpoint,
    refuse_another_run,
    unmeasured,
)
from trainer.plan.data import check_one_tokenizer, open_sources, open_validation
from trainer.plan.memory import Memory, estimate
from trainer.recipe.schema import Recipe
from trainer.scheduler.decide import decide
from trainer.scheduler.decision import Decision
from trainer.scheduler.state import BaseLineage, RunState
from trainer.storage.run_directory import EXPORTED

LARGEST_ON_HOST = 16
"""Samples in a micro batch on the CPU: beyond it nothing gets faster."""


@dataclass(frozen=True)
class Plan:
    """A checked recipe, what it means in its run directory, and all that it was checked with."""

    recipe: Recipe
    preset: dict[str, Any]
    layout: Layout
    model_config: dict[str, Any]
    """Fields of the Hugging Face config."""
    vocab_size: int
    """Pieces of the tokenizer."""
    stores: dict[str, TokenStore]
    validation: dict[str, TokenStore]
    """`upstream`, `downstream`."""
    mixture: Mixture
    memory: Memory
    checkpoint: manifest.Checkpoint | None
    """The newest good one in the run directory."""
    broken: tuple[str, ...]
    """A line for each checkpoint that is not good."""
    notes: tuple[str, ...]
    """A line for each thing that the run will not measure."""
    data: list[MixtureDescription]
    """Per phase all that decides which samples it takes."""
    base: BaseLineage | None
    decision: Decision


def make_plan(recipe: Recipe, world_size: int, skip: Collection[Path] = ()) -> Plan:
    """Checks everything and decides what starting this recipe means; changes nothing.

    `skip` holds checkpoints that turned out to be damaged.

    Raises:
        Problems: all that is wrong, at once.
        InfrastructureError: there are checkpoints and none of them is good.
    """
    refuse_another_run(recipe)
    checkpoint, broken = newest_checkpoint(recipe, skip)
    state = RunState.from_json(checkpoint.manifest.state) if checkpoint else None
    together = ErrorCollector()
    preset = together(lambda: ds_config.read_preset(recipe.deepspeed))
    vocab_size = together(lambda: files.open_tokenizer(recipe.model.tokenizer).size)
    stores = together(lambda: open_sources(recipe, state.fingerprints() if state else {}))
    validation = together(lambda: open_validation(recipe))
    if preset is not None:
        together(lambda: ds_config.check_saved(preset, recipe))
    together(lambda: check_services(recipe.logging))
    if stores is not None and validation is not None and vocab_size is not None:
        together(lambda: check_one_tokenizer(recipe, stores, validation))
    if vocab_size is not None:
        together.problems += architecture.check_model(recipe, vocab_size)
    if preset is None or stores is None or validation is None or vocab_size is None or together.problems:
        raise UserErrors(together.problems)
    config = architecture.resolve_config(recipe, vocab_size)
    together(lambda: check_trained_patterns(recipe, vocab_size))
    memory = _memory(recipe, preset, config, world_size)
    layout = together(lambda: _layout(recipe, memory, world_size))
    mixture = together(lambda: _mixture(recipe, stores, state))
    if layout is None or mixture is None:
        raise UserErrors(together.problems)
    together(lambda: ds_config.complete(preset, recipe, layout, config))
    if state is None or state.settings["seq_len"] == recipe.seq_len:
        together(mixture.check_epochs)  # with another seq_len, which is refused, uses cannot be counted
    if together.problems:
        raise UserErrors(together.problems)
    data = [mixture.describe(phase) for phase in range(len(recipe.phases))]
    base = base_lineage(recipe, config)
    return Plan(
        recipe=recipe,
        preset=preset,
        layout=layout,
        model_config=config,
        vocab_size=vocab_size,
        stores=stores,
        validation=validation,
        mixture=mixture,
        memory=memory,
        checkpoint=checkpoint,
        broken=tuple(broken),
        notes=tuple(unmeasured(recipe, validation, checkpoint)),
        data=data,
        base=base,
        decision=decide(recipe, data, state, base),
    )


def _memory(recipe: Recipe, preset: dict[str, Any], config: dict[str, Any], world_size: int) -> Memory:
    return estimate(
        config,
        stage=ds_config.stage(preset),
        offload_optimizer=ds_config.offloads_optimizer(preset),
        offload_parameters=ds_config.offloads_parameters(preset),
        world_size=world_size,
        seq_len=recipe.seq_len,
        dtype=recipe.model.dtype,
        recompute=recipe.model.activation_checkpointing == "full",
    )


def _layout(recipe: Recipe, memory: Memory, world_size: int) -> Layout:
    return layout_.layout(recipe, world_size, memory.largest_micro_batch(available_bytes(world_size)))


def _mixture(recipe: Recipe, stores: Mapping[str, TokenStore], state: RunState | None) -> Mixture:
    """The mixture, whose past is what the checkpoint recorded and not what the recipe now says of it."""
    sizes = {name: SourceSize.of(store, recipe.seq_len) for name, store in stores.items()}
    return Mixture.from_recipe(recipe, sizes, state.past() if state else ())


def base_lineage(recipe: Recipe, config: Mapping[str, Any]) -> BaseLineage | None:
    """What is known of the base's past: all of it where the base is ours, a checkpoint or its export."""
    base = recipe.model.base
    if base is None:
        return None
    if (Path(base) / manifest.MARKER).is_file():
        return BaseLineage.of(RunState.from_json(manifest.read_checkpoint(Path(base)).manifest.state), base)
    if (Path(base) / EXPORTED).is_file():
        told = json.loads((Path(base) / EXPORTED).read_text(encoding="utf-8"))
        new_rows = told.pop("new_rows", 0)
        return BaseLineage.of(RunState.from_json(told), base, new_rows, optimizer=False)
    rows = int(config.get("base_vocab_size") or config["vocab_size"])
    new_rows = int(config["vocab_size"]) - rows
    return BaseLineage(base, new_rows=new_rows)
