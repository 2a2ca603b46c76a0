"""Plan a run: read, check and decide everything that needs no process group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenization.errors import UserErrors
from tokenization.shards.store import TokenStore
from tokenization.tokenizer.files import Tokenizer
from trainer.checkpoint import manifest
from trainer.checkpoint.mirror import check_mirror
from trainer.engine import ds_config
from trainer.engine import layout as layout_
from trainer.engine.layout import Layout
from trainer.engine.versions import check_version
from trainer.evaluation.tasks import check_tasks
from trainer.machine.devices import available_bytes, has_cuda
from trainer.metrics.services import check_services
from trainer.mixer.decisions import changes_of
from trainer.mixer.description import MixtureDescription
from trainer.mixer.mixture import Mixture
from trainer.model import architecture
from trainer.model.rope import phase_configs
from trainer.plan.ahead import (
    Ahead,
    Missing,
    complain_of_split,
    config_ahead,
    find_missing,
    note_unused,
    stand_in_sizes,
)
from trainer.plan.checks import (
    ErrorCollector,
    check_base_weights,
    check_trained_patterns,
    newest_checkpoint,
    refuse_another_run,
    unmeasured,
    unwatched,
    validation_windows,
)
from trainer.plan.data import (
    check_one_tokenizer,
    open_sources,
    open_validation,
    sizes_of,
    trained_on,
    used_up,
)
from trainer.plan.memory import Memory, Shape, estimate
from trainer.plan.past import (
    changed_base,
    generation_of,
    own_config,
    phase_now,
    read_left_out,
    windows,
)
from trainer.plan.presets import memory_settings
from trainer.plan.tokenizer import (
    check_as_trained,
    check_probe,
    compare_with_base,
    known_pieces,
    named_tokenizer,
    with_tokenizer,
)
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
    """Fields of the Hugging Face config, as the phase that is trained next has them.

    Empty if a plan ahead of the base does not know its sizes.
    """
    vocab_size: int
    """Pieces of the tokenizer."""
    stores: dict[str, TokenStore]
    """The sources, by name; one that no phase takes from any more may be missing."""
    validation: dict[str, TokenStore]
    """By the names that they have in metrics: `upstream`, `downstream/zh-law`."""
    remarks: list[str]
    """A line for each difference between the base and the tokenizer, and for each input that is missing."""
    missing: Missing
    """What is not there yet; nothing when the run starts."""


@dataclass(frozen=True)
class Fit:
    """The inputs, fitted to the ranks and to the run's past."""

    memory: Memory | None
    """None if the model's sizes are not known."""
    available: int
    """Bytes that a rank may use."""
    cuda: bool
    """Whether it computes on a GPU."""
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


def make_plan(
    recipe: Recipe,
    world_size: int,
    skip: Mapping[Path, str] = MappingProxyType({}),
    ahead: Ahead | None = None,
) -> Plan:
    """Check everything and decide what starting this recipe means; change nothing.

    Args:
        recipe: the whole run.
        world_size: number of ranks.
        skip: checkpoints that turned out to be damaged, and what is wrong with each.
        ahead: what may be assumed; None if the run starts now, and everything must be there.

    Raises:
        UserErrors: all that is wrong, at once.
        UserError: there are checkpoints and none of them is good.
        InfrastructureError: a disk failed.
    """
    refuse_another_run(recipe)
    checkpoint, broken = newest_checkpoint(recipe, skip)
    state = RunState.from_json(checkpoint.manifest.state) if checkpoint else None
    inputs = _read_inputs(recipe, state, checkpoint, ahead)
    fit = _fit(recipe, inputs, world_size, state, ahead)
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
            *validation_windows(recipe),
            *unwatched(recipe),
        ),
        generation=generation_of(recipe, checkpoint),
        data=data,
        decision=replace(decision, state=decision.state.with_left_out(left_out)),
    )


def _read_inputs(
    recipe: Recipe, state: RunState | None, checkpoint: manifest.Checkpoint | None, ahead: Ahead | None
) -> Inputs:
    """Read what the recipe names, and check each input and that they belong together.

    Raises:
        UserErrors: all that is wrong with them.
    """
    check = ErrorCollector()
    # What a run has begun with must be there, whoever asks.
    missing = find_missing(recipe) if ahead and not ahead.strict and checkpoint is None else Missing()
    preset = check(lambda: ds_config.read_preset(recipe.deepspeed))
    tokenizer = check(lambda: None if missing.tokenizer else named_tokenizer(recipe))
    known = state.fingerprints() if state else {}
    stores = check(lambda: open_sources(recipe, known, used_up(recipe, state) | missing.sources))
    validation = check(lambda: open_validation(recipe, missing.validation))
    check(lambda: ds_config.check_saved(preset(), recipe))
    check(lambda: check_services(recipe.logging))
    check(lambda: check_mirror(recipe.checkpoint.mirror))
    check(lambda: check_tasks(recipe.validation.tasks))
    check(lambda: note_unused(ahead or Ahead(), recipe, missing, _pieces(tokenizer())))
    own = check(lambda: own_config(checkpoint))
    now, begun = phase_now(recipe, state)
    base = check(lambda: _base_config(recipe, own(), missing))
    config = check(lambda: _model_config(recipe, base(), tokenizer(), own(), ahead, missing, now, begun))
    remarks = check(
        lambda: _remarks(recipe, config(), tokenizer(), state, begun=own() is not None or missing.base)
    )
    check(lambda: _check_tokenizer(recipe, stores(), validation(), tokenizer(), checkpoint))
    check(lambda: check_probe(recipe, config(), read) if (read := tokenizer()) is not None else None)
    check.raise_problems()
    read, whole = tokenizer(), config()
    if whole:
        whole = next(phase_configs(recipe, whole, now, begun=begun))
    if read is not None:
        whole = with_tokenizer(recipe, whole, read, begun=own() is not None) if whole else whole
    size = read.size if read is not None else int(config().get("vocab_size", 0))
    notes = [*missing.notes, *complain_of_split(recipe, missing), *remarks()]
    return Inputs(preset(), whole, size, stores(), validation(), notes, missing)


def _pieces(tokenizer: Tokenizer | None) -> int | None:
    return None if tokenizer is None else tokenizer.size


def _check_tokenizer(
    recipe: Recipe,
    stores: Mapping[str, TokenStore],
    validation: Mapping[str, TokenStore],
    tokenizer: Tokenizer | None,
    checkpoint: manifest.Checkpoint | None,
) -> None:
    """Check that the shards and the run's past are of this tokenizer, if it is there."""
    check = ErrorCollector()
    if tokenizer is not None:
        check(lambda: check_one_tokenizer(recipe, stores, validation, tokenizer))
        check(lambda: check_as_trained(recipe, tokenizer, checkpoint))
    check.raise_problems()


def _remarks(
    recipe: Recipe,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    state: RunState | None,
    *,
    begun: bool,
) -> list[str]:
    """Compare the base with the tokenizer, or with what a run has begun with."""
    if begun:
        return list(changed_base(recipe, config, state))
    return [] if tokenizer is None else compare_with_base(recipe, config, tokenizer)


def _fit(recipe: Recipe, inputs: Inputs, world_size: int, state: RunState | None, ahead: Ahead | None) -> Fit:
    """Fit the model, the batch and the mixture to the inputs and to the ranks.

    Raises:
        UserErrors: all that does not fit.
    """
    check = ErrorCollector()
    config, missing = inputs.model_config, inputs.missing
    check(lambda: ds_config.check_known(inputs.preset, recipe.deepspeed))
    if state is None and not missing.base:
        check(lambda: check_base_weights(recipe, config))
    check.raise_problems()
    given = ahead.available if ahead else None
    available = given or available_bytes(world_size)
    cuda = given is not None or has_cuda()
    now, _ = phase_now(recipe, state)
    memory = _memory(recipe, inputs, world_size, cuda, now) if config else None
    largest = memory.largest_micro_batch(available) if memory else 1
    if config:
        check(lambda: check_trained_patterns(config, recipe, inputs.vocab_size))
    layout = check(lambda: layout_.layout(recipe, world_size, largest, now))
    for phase in range(now + 1, len(recipe.phases)):
        if recipe.seq_len_of(phase) != recipe.seq_len_of(phase - 1):
            check(partial(layout_.layout, recipe, world_size, largest, phase))
    steps = check(lambda: layout().gradient_accumulation_steps)
    check(lambda: check_version(inputs.preset, recipe.model.dtype, steps()))
    if config:
        check(lambda: ds_config.complete(inputs.preset, recipe, layout(), config))
    # The past is what the checkpoint recorded, and not what the recipe now says of it.
    sizes = sizes_of(recipe, inputs.stores, state) | dict(stand_in_sizes(recipe, missing))
    past, decided = (state.past(), changes_of(state.decisions)) if state else ((), [])
    mixture = check(lambda: Mixture.from_recipe(recipe, sizes, past, decided))
    if state is None or _same_lengths(recipe, state):
        check(lambda: mixture().check_epochs())  # another seq_len is refused: uses cannot be counted with it
    check.raise_problems()
    return Fit(memory, available, cuda, layout(), mixture())


def _same_lengths(recipe: Recipe, state: RunState) -> bool:
    """Tell whether the phases that have begun have the seq_len that they began with."""
    begun = enumerate(state.phases[: len(recipe.phases)])
    return all(record.data.seq_len == recipe.seq_len_of(number) for number, record in begun)


def _base_config(recipe: Recipe, own: dict[str, Any] | None, missing: Missing) -> dict[str, Any] | None:
    """Read the config of a base that a run begins with: what is wrong with it shows without a tokenizer."""
    if own is not None or recipe.model.base is None or missing.base:
        return None
    return architecture.resolve_config(recipe, 0)


def _model_config(
    recipe: Recipe,
    base: dict[str, Any] | None,
    tokenizer: Tokenizer | None,
    own: dict[str, Any] | None,
    ahead: Ahead | None,
    missing: Missing,
    now: int,
    begun: bool,
) -> dict[str, Any]:
    """Check the model's config: the run's `own`, from its checkpoint, else that of `base` or of `init`.

    `now` and `begun` are those of `phase_now`.
    """
    if own is not None:
        config = own
    elif base is not None:
        config = base
    elif ahead is not None:
        config = config_ahead(recipe, ahead, missing, _pieces(tokenizer))
    else:
        assert tokenizer is not None
        config = architecture.resolve_config(recipe, tokenizer.size)
    if not config:
        return config
    known = known_pieces(recipe, config, tokenizer) if tokenizer is not None and not missing.base else None
    pieces = tokenizer.size if tokenizer is not None else int(config["vocab_size"])
    if problems := architecture.check_config(config, recipe, pieces, known, now, begun=begun):
        raise UserErrors(problems)
    return config


def _memory(recipe: Recipe, inputs: Inputs, world_size: int, cuda: bool, now: int) -> Memory:
    config = inputs.model_config
    settings = memory_settings(recipe, inputs.preset, config, world_size, cuda=cuda, phase=now)
    return estimate(Shape.of(config), settings)


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
    rows = int(config.get("base_vocab_size") or config.get("vocab_size", 0))
    new_rows = int(config.get("vocab_size", 0)) - rows
    return BaseLineage(base, new_rows=new_rows)
