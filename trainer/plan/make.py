"""The run before the run: everything that can be known, checked and decided without a process group."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore
from tokenization.tokenizer import files
from tokenization.tokenizer.fingerprint import same
from trainer.checkpoint import manifest
from trainer.engine import ds_config
from trainer.engine import layout as layout_
from trainer.engine.layout import Layout
from trainer.machine.devices import available_bytes
from trainer.metrics.services import check_services
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.model import architecture, tokens
from trainer.plan.checks import (
    ErrorCollector,
    check_trained_patterns,
    newest_checkpoint,
    refuse_another_run,
    unmeasured,
)
from trainer.plan.data import check_one_tokenizer, open_sources, open_validation, shared
from trainer.plan.memory import Memory, estimate
from trainer.recipe.schema import Recipe
from trainer.scheduler.decide import decide
from trainer.scheduler.decision import Decision
from trainer.scheduler.state import BaseLineage, RunState
from trainer.storage.run_directory import EXPORTED
from trainer.storage.safetensors import read_generation

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
    """A line for each thing that the run will not measure, or not on text of its own, or that is odd about
    its tokens."""
    data: list[dict[str, Any]]
    """Per phase what the mixer takes its samples from."""
    base: BaseLineage | None
    decision: Decision
    generation: dict[str, Any] | None = None
    """What the base says of how to generate."""


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
    tokenizer = together(lambda: files.open_tokenizer(recipe.model.tokenizer))
    vocab_size = tokenizer.size if tokenizer is not None else None
    described = {
        field: value for record in (state.phases if state else ()) for field, value in record.data.items()
    }
    stores = together(lambda: open_sources(recipe, described))
    validation = together(lambda: open_validation(recipe))
    if preset is not None:
        together(lambda: ds_config.check_saved(preset, recipe))
    together(lambda: check_services(recipe.logging))
    if stores is not None and validation is not None and tokenizer is not None:
        together(lambda: check_one_tokenizer(recipe, tokenizer, stores, validation))
    if checkpoint is not None and tokenizer is not None:
        together(lambda: _as_trained(recipe, tokenizer, checkpoint))
    if vocab_size is not None:
        together.problems += architecture.check_model(recipe, vocab_size)
    if preset is None or stores is None or validation is None or tokenizer is None or together.problems:
        raise UserErrors(together.problems)
    vocab_size = tokenizer.size
    config = architecture.resolve_config(recipe, vocab_size)
    of_tokens = together(lambda: _of_tokens(recipe, config, tokenizer))
    config = _with_tokenizer(recipe, config, tokenizer)
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
        notes=(
            *(of_tokens or ()),
            *_trained_on(recipe, stores, validation),
            *unmeasured(recipe, validation, checkpoint),
        ),
        data=data,
        base=base,
        generation=read_generation(recipe.model.base) if recipe.model.base else None,
        decision=decide(recipe, data, state, base),
    )


def _of_tokens(recipe: Recipe, config: Mapping[str, Any], tokenizer: files.Tokenizer) -> list[str]:
    """Hold the base against the tokenizer; lines to be told."""
    base = recipe.model.base
    if base is None:
        return []
    return [*tokens.compare(base, config, tokenizer), *tokens.padding(config, tokenizer, value=base)]


def _with_tokenizer(recipe: Recipe, config: dict[str, Any], tokenizer: files.Tokenizer) -> dict[str, Any]:
    """The config with the tokenizer's fingerprint; of random weights also with its EOS, BOS and pad."""
    told = {**config, tokens.TOKENIZER: tokenizer.fingerprint}
    if recipe.model.base is None:
        ids = {f"{name}_token_id": tokenizer.special_id(name) for name in tokens.NAMES}
        told |= {field: index for field, index in ids.items() if field not in (recipe.model.init or {})}
    return told


def _as_trained(recipe: Recipe, tokenizer: files.Tokenizer, checkpoint: manifest.Checkpoint) -> None:
    """A run goes on with the tokenizer that it was trained with."""
    if not (checkpoint.path / "config.json").is_file():
        return
    recorded = architecture.read_config(checkpoint.path).get(tokens.TOKENIZER)
    if isinstance(recorded, str) and not same(recorded, tokenizer.fingerprint):
        raise UserError(
            f"is {tokenizer.fingerprint} now, and {checkpoint.path} was trained with {recorded}",
            field="model.tokenizer",
            value=recipe.model.tokenizer,
            fix="restore the tokenizer that the run began with, or give another run_dir",
        )


def _trained_on(
    recipe: Recipe, stores: Mapping[str, TokenStore], validation: Mapping[str, TokenStore]
) -> Iterator[str]:
    """Text that is trained on is no measure of what is learnt or forgotten."""
    for name, held_out in validation.items():
        for source, store in stores.items():
            if shared(store, held_out):
                yield (
                    f"validation.{name}: {str(held_out.prefix)!r} holds tokens that sources.{source} trains "
                    "on: its score says nothing of other text; hold text out by `data prepare --validation`"
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
    if state is None:
        return Mixture.from_recipe(recipe, sizes)
    done = [*(record.samples for record in state.phases[:-1]), state.samples]
    return Mixture.from_recipe(
        recipe, sizes, taken=state.samples_before(), done=done, begun_with=state.sources()
    )


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
