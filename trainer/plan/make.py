"""Plan a run: read, check and decide everything that needs no process group."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenization.errors import UserErrors
from tokenization.shards.store import TokenStore
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from trainer.checkpoint import manifest
from trainer.engine import ds_config
from trainer.engine import layout as layout_
from trainer.engine.layout import Layout
from trainer.machine.devices import available_bytes
from trainer.metrics.services import check_services
from trainer.mixer.description import MixtureDescription
from trainer.mixer.mixture import Mixture
from trainer.model import architecture
from trainer.plan.checks import (
    ErrorCollector,
    check_base_weights,
    check_trained_patterns,
    newest_checkpoint,
    refuse_another_run,
    unmeasured,
)
from trainer.plan.data import (
    check_one_tokenizer,
    open_sources,
    open_validation,
    sizes_of,
    trained_on,
    used_up,
)
from trainer.plan.memory import Memory, estimate
from trainer.plan.past import changed_base, generation_of, own_config, read_left_out, windows
from trainer.plan.tokenizer import check_as_trained, compare_with_base, known_pieces, with_tokenizer
from trainer.recipe.schema import Recipe
from trainer.scheduler.decide import decide
from trainer.scheduler.decision import Decision
from trainer.scheduler.state import BaseLineage, RunState
from trainer.storage.run_directory import EXPORTED, RunDirectory


@dataclass(frozen=True)
class Inputs:
    """What a recipe names, read and checked."""

    preset: dict[str, Any]
    """The ds_config as written: how memory is split."""
    model_config: dict[str, Any]
    """Fields of the Hugging Face config."""
    vocab_size: int
    """Pieces of the tokenizer."""
    stores: dict[str, TokenStore]
    """The sources, by name; one that no phase takes from any more may be missing."""
    validation: dict[str, TokenStore]
    """`upstream`, `downstream`."""
    remarks: list[str]
    """A line for each difference between the base and the tokenizer."""


@dataclass(frozen=True)
class Fit:
    """The inputs, fitted to the ranks and to the run's past."""

    memory: Memory
    layout: Layout
    mixture: Mixture


@dataclass(frozen=True, kw_only=True)
class Plan(Inputs, Fit):
    """A checked recipe, what it means in its run directory, and all that it was checked with."""

    recipe: Recipe
    checkpoint: manifest.Checkpoint | None
    """The newest good one in the run directory."""
    broken: tuple[str, ...]
    """A line for each checkpoint that is not good."""
    notes: tuple[str, ...]
    """A line for each measurement that the run will not make, or not on text of its own, and the remarks."""
    generation: dict[str, Any] | None
    """The base's generation_config.json."""
    data: list[MixtureDescription]
    """Per phase all that decides which samples it takes."""
    decision: Decision


def make_plan(recipe: Recipe, world_size: int, skip: Collection[Path] = ()) -> Plan:
    """Check everything and decide what starting this recipe means; change nothing.

    Args:
        recipe: the whole run.
        world_size: number of ranks.
        skip: checkpoints that turned out to be damaged.

    Raises:
        UserErrors: all that is wrong, at once.
        InfrastructureError: there are checkpoints and none of them is good.
    """
    refuse_another_run(recipe)
    checkpoint, broken = newest_checkpoint(recipe, skip)
    state = RunState.from_json(checkpoint.manifest.state) if checkpoint else None
    inputs = _read_inputs(recipe, state, checkpoint)
    fit = _fit(recipe, inputs, world_size, state)
    data = [fit.mixture.describe(phase) for phase in range(len(recipe.phases))]
    decision = decide(recipe, data, state, None if state else base_lineage(recipe, inputs.model_config))
    left_out = windows(read_left_out(RunDirectory(recipe.directory)))
    return Plan(
        **vars(inputs),
        **vars(fit),
        recipe=recipe,
        checkpoint=checkpoint,
        broken=tuple(broken),
        notes=(
            *inputs.remarks,
            *trained_on(recipe, inputs.stores, inputs.validation),
            *unmeasured(recipe, inputs.validation, checkpoint),
        ),
        generation=generation_of(recipe, checkpoint),
        data=data,
        decision=replace(decision, state=decision.state.with_left_out(left_out)),
    )


def _read_inputs(recipe: Recipe, state: RunState | None, checkpoint: manifest.Checkpoint | None) -> Inputs:
    """Read what the recipe names, and check each input and that they belong together.

    Raises:
        UserErrors: all that is wrong with them.
    """
    check = ErrorCollector()
    preset = check(lambda: ds_config.read_preset(recipe.deepspeed))
    tokenizer = check(lambda: open_tokenizer(recipe.model.tokenizer))
    known = state.fingerprints() if state else {}
    stores = check(lambda: open_sources(recipe, known, used_up(recipe, state)))
    validation = check(lambda: open_validation(recipe))
    check(lambda: ds_config.check_saved(preset(), recipe))
    check(lambda: check_services(recipe.logging))
    check(lambda: check_one_tokenizer(recipe, stores(), validation(), tokenizer()))
    check(lambda: check_as_trained(recipe, tokenizer(), checkpoint))
    own = check(lambda: own_config(checkpoint))
    config = check(lambda: _model_config(recipe, tokenizer(), own()))
    remarks = check(
        lambda: (
            compare_with_base(recipe, config(), tokenizer())
            if own() is None
            else list(changed_base(recipe, config()))
        )
    )
    check.raise_problems()
    return Inputs(
        preset(),
        with_tokenizer(recipe, config(), tokenizer(), begun=own() is not None),
        tokenizer().size,
        stores(),
        validation(),
        remarks(),
    )


def _fit(recipe: Recipe, inputs: Inputs, world_size: int, state: RunState | None) -> Fit:
    """Fit the model, the batch and the mixture to the inputs and to the ranks.

    Raises:
        UserErrors: all that does not fit.
    """
    check = ErrorCollector()
    check(lambda: ds_config.check_known(inputs.preset, recipe.deepspeed))
    if state is None:
        check(lambda: check_base_weights(recipe, inputs.model_config))
    check.raise_problems()
    memory = _memory(recipe, inputs, world_size)
    check(lambda: check_trained_patterns(inputs.model_config, recipe, inputs.vocab_size))
    layout = check(
        lambda: layout_.layout(recipe, world_size, memory.largest_micro_batch(available_bytes(world_size)))
    )
    check(lambda: ds_config.complete(inputs.preset, recipe, layout(), inputs.model_config))
    # The past is what the checkpoint recorded, and not what the recipe now says of it.
    sizes = sizes_of(recipe, inputs.stores, state)
    mixture = check(lambda: Mixture.from_recipe(recipe, sizes, state.past() if state else ()))
    if state is None or state.settings["seq_len"] == recipe.seq_len:
        check(lambda: mixture().check_epochs())  # another seq_len is refused: uses cannot be counted with it
    check.raise_problems()
    return Fit(memory, layout(), mixture())


def _model_config(recipe: Recipe, tokenizer: Tokenizer, own: dict[str, Any] | None) -> dict[str, Any]:
    """Check the model's config: the run's `own`, from its checkpoint, else that of the base or of `init`."""
    config = architecture.resolve_config(recipe, tokenizer.size) if own is None else own
    known = known_pieces(recipe, config, tokenizer)
    if problems := architecture.check_config(config, recipe, tokenizer.size, known):
        raise UserErrors(problems)
    return config


def _memory(recipe: Recipe, inputs: Inputs, world_size: int) -> Memory:
    return estimate(
        inputs.model_config,
        stage=ds_config.stage(inputs.preset),
        offload_optimizer=ds_config.offloads_optimizer(inputs.preset),
        offload_parameters=ds_config.offloads_parameters(inputs.preset),
        world_size=world_size,
        seq_len=recipe.seq_len,
        dtype=recipe.model.dtype,
        recompute=recipe.model.activation_checkpointing == "full",
    )


def base_lineage(recipe: Recipe, config: Mapping[str, Any]) -> BaseLineage | None:
    """Return what is known of the base's past: all of it for a checkpoint of ours or its export."""
    base = recipe.model.base
    if base is None:
        return None
    if (Path(base) / manifest.MARKER).is_file():
        return BaseLineage.of(RunState.from_json(manifest.read_checkpoint(Path(base)).manifest.state), base)
    if (Path(base) / EXPORTED).is_file():
        exported = json.loads((Path(base) / EXPORTED).read_text(encoding="utf-8"))
        new_rows = exported.pop("new_rows", 0)
        return BaseLineage.of(RunState.from_json(exported), base, new_rows, optimizer=False)
    rows = int(config.get("base_vocab_size") or config["vocab_size"])
    new_rows = int(config["vocab_size"]) - rows
    return BaseLineage(base, new_rows=new_rows)
