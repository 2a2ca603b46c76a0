"""The run before the run: everything that can be known, checked and decided without a process group."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from tokenization import vocabulary
from tokenization.fingerprint import same
from tokenization.shards import TokenStore, open_tokens
from trainer import sharding
from trainer.checkpoint import commit
from trainer.claim import LOCK
from trainer.errors import InfrastructureError, Problems, UserError
from trainer.evaluation import Baseline, measured_on
from trainer.metrics import check as check_logging
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.mixer.sources import open_sources, shared
from trainer.model import architecture, tokens
from trainer.model.directory import read_generation
from trainer.model.memory import Memory, estimate
from trainer.recipe import Recipe
from trainer.scheduler.resume import Decision, decide
from trainer.scheduler.state import EXPORTED, BaseLineage, RunState

RESOLVED = "recipe.resolved.yaml"
"""File in the run directory: the recipe with every default filled in."""

_LEFT_AT_START = {LOCK, f"{RESOLVED}.tmp"}
"""What a start that was killed before it began leaves in a run directory."""

LARGEST_ON_HOST = 16
"""Samples in a micro batch on the CPU: beyond it nothing gets faster."""

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """A checked recipe, what it means in its run directory, and all that it was checked with."""

    recipe: Recipe
    preset: dict[str, Any]
    layout: sharding.Layout
    model_config: dict[str, Any]
    """Fields of the Hugging Face config."""
    vocab_size: int
    """Pieces of the tokenizer."""
    stores: dict[str, TokenStore]
    validation: dict[str, TokenStore]
    """`upstream`, `downstream`."""
    mixture: Mixture
    memory: Memory
    checkpoint: commit.Checkpoint | None
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


def checkpoints(recipe: Recipe) -> Path:
    """Where the run's checkpoints are."""
    return recipe.directory / "checkpoints"


def prepare(recipe: Recipe, world_size: int, skip: Collection[Path] = ()) -> Plan:
    """Checks everything and decides what starting this recipe means; changes nothing.

    `skip` holds checkpoints that turned out to be damaged.

    Raises:
        Problems: all that is wrong, at once.
        InfrastructureError: there are checkpoints and none of them is good.
    """
    _refuse_another_run(recipe)
    checkpoint, broken = _newest(recipe, skip)
    state = RunState.from_json(checkpoint.manifest.state) if checkpoint else None
    together = _Together()
    preset = together(lambda: sharding.read_preset(recipe.deepspeed))
    tokenizer = together(lambda: vocabulary.open_tokenizer(recipe.model.tokenizer))
    vocab_size = tokenizer.size if tokenizer is not None else None
    described = {
        field: value for record in (state.phases if state else ()) for field, value in record.data.items()
    }
    stores = together(lambda: open_sources(recipe, described))
    validation = together(lambda: _open_validation(recipe))
    if preset is not None:
        together(lambda: sharding.check_saved(preset, recipe))
    together(lambda: check_logging(recipe.logging))
    if stores is not None and validation is not None and tokenizer is not None:
        together(lambda: _one_tokenizer(recipe, tokenizer, stores, validation))
    if checkpoint is not None and tokenizer is not None:
        together(lambda: _as_trained(recipe, tokenizer, checkpoint))
    if vocab_size is not None:
        together.problems += architecture.check(recipe, vocab_size)
    if preset is None or stores is None or validation is None or tokenizer is None or together.problems:
        raise Problems(together.problems)
    vocab_size = tokenizer.size
    config = architecture.resolve(recipe, vocab_size)
    of_tokens = together(lambda: _of_tokens(recipe, config, tokenizer))
    config = _with_tokenizer(recipe, config, tokenizer)
    together(lambda: _trained(recipe, vocab_size))
    memory = _memory(recipe, preset, config, world_size)
    layout = together(lambda: _layout(recipe, memory, world_size))
    mixture = together(lambda: _mixture(recipe, stores, state))
    if layout is None or mixture is None:
        raise Problems(together.problems)
    together(lambda: sharding.complete(preset, recipe, layout, config))
    if state is None or state.settings["seq_len"] == recipe.seq_len:
        together(mixture.check_epochs)  # with another seq_len, which is refused, uses cannot be counted
    if together.problems:
        raise Problems(together.problems)
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
            *_unmeasured(recipe, validation, checkpoint),
        ),
        data=data,
        base=base,
        generation=read_generation(recipe.model.base) if recipe.model.base else None,
        decision=decide(recipe, data, state, base),
    )


class _Together:
    """Calls checks one after another and keeps what they complain of, to be told at once."""

    def __init__(self) -> None:
        self.problems: list[UserError] = []

    def __call__(self, check: Callable[[], T]) -> T | None:
        try:
            return check()
        except Problems as several:
            self.problems += several.problems
        except UserError as problem:
            self.problems.append(problem)
        return None


def _refuse_another_run(recipe: Recipe) -> None:
    """A run directory belongs to one run, by name."""
    directory = recipe.directory
    resolved = directory / RESOLVED
    if resolved.exists():
        name = yaml.safe_load(resolved.read_text(encoding="utf-8")).get("name")
        if name == recipe.name:
            return
        what = f"holds another run, {name!r}, and this recipe is {recipe.name!r}"
    elif directory.exists() and (not directory.is_dir() or set(os.listdir(directory)) - _LEFT_AT_START):
        what = "is not empty and holds no run"
    elif any(above.is_file() for above in directory.parents):
        what = "lies below a file"
    else:
        return
    raise UserError(what, field="run_dir", value=str(directory), mend="give another run_dir")


def _newest(recipe: Recipe, skip: Collection[Path]) -> tuple[commit.Checkpoint | None, list[str]]:
    """The newest good checkpoint, and a line for each that is not good."""
    good, broken = commit.scan(checkpoints(recipe))
    good = [checkpoint for checkpoint in good if checkpoint.path not in skip]
    if not good and (skip or commit.has_committed(checkpoints(recipe))):
        listed = "; ".join([*broken, *(f"{path}: damaged" for path in skip)])
        raise InfrastructureError(
            f"{checkpoints(recipe)}: no checkpoint is good ({listed}); restore one, or give another run_dir "
            "to begin again from the base"
        )
    return (good[-1] if good else None), broken


def _open_validation(recipe: Recipe) -> dict[str, TokenStore]:
    sets = {"upstream": recipe.validation.upstream, "downstream": recipe.validation.downstream}
    stores = {}
    problems = []
    for name, prefix in sets.items():
        if prefix is None:
            continue
        try:
            stores[name] = open_tokens(prefix)
            if stores[name].tokens < 2:
                raise UserError("holds fewer than 2 tokens", file=prefix, mend="hold out more text")
        except UserError as error:
            problems.append(UserError(f"validation.{name}: {error}"))
    if problems:
        raise Problems(problems)
    return stores


def baselines(checkpoint: commit.Checkpoint | None) -> dict[str, Baseline]:
    """What the base scored on each validation set, as far as the run has measured it."""
    told = checkpoint.manifest.baseline if checkpoint else {}
    return {name: Baseline.from_json(base) for name, base in told.items()}


def _unmeasured(
    recipe: Recipe, validation: Mapping[str, TokenStore], checkpoint: commit.Checkpoint | None
) -> Iterator[str]:
    """Forgetting is a difference of two scores on the same text, and is told where the base has none."""
    if checkpoint is None or "upstream" not in validation:
        return
    base = baselines(checkpoint).get("upstream")
    now = measured_on(validation["upstream"], recipe.seq_len, recipe.validation.max_tokens)
    prefix = recipe.validation.upstream
    where = f"validation.upstream: {prefix!r}: forgetting is not logged, since the base was"
    if base is None:
        yield f"{where} not scored on it before the first step; start a new run directory to have it"
    elif changed := ", ".join(base.unlike(now)):
        yield f"{where} scored on another set ({changed}); put that back, or start a new run directory"


def _of_tokens(recipe: Recipe, config: Mapping[str, Any], tokenizer: vocabulary.Tokenizer) -> list[str]:
    """Hold the base against the tokenizer; lines to be told."""
    base = recipe.model.base
    if base is None:
        return []
    return [*tokens.compare(base, config, tokenizer), *tokens.padding(config, tokenizer, value=base)]


def _with_tokenizer(
    recipe: Recipe, config: dict[str, Any], tokenizer: vocabulary.Tokenizer
) -> dict[str, Any]:
    """The config with the tokenizer's fingerprint; of random weights also with its EOS, BOS and pad."""
    told = {**config, tokens.TOKENIZER: tokenizer.fingerprint}
    if recipe.model.base is None:
        ids = {f"{name}_token_id": tokenizer.special_id(name) for name in tokens.NAMES}
        told |= {field: index for field, index in ids.items() if field not in (recipe.model.init or {})}
    return told


def _as_trained(recipe: Recipe, tokenizer: vocabulary.Tokenizer, checkpoint: commit.Checkpoint) -> None:
    """A run goes on with the tokenizer that it was trained with."""
    if not (checkpoint.path / "config.json").is_file():
        return
    recorded = architecture.read_config(checkpoint.path).get(tokens.TOKENIZER)
    if isinstance(recorded, str) and not same(recorded, tokenizer.fingerprint):
        raise UserError(
            f"is {tokenizer.fingerprint} now, and {checkpoint.path} was trained with {recorded}",
            field="model.tokenizer",
            value=recipe.model.tokenizer,
            mend="restore the tokenizer that the run began with, or give another run_dir",
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


def _one_tokenizer(
    recipe: Recipe,
    tokenizer: vocabulary.Tokenizer,
    stores: Mapping[str, TokenStore],
    validation: Mapping[str, TokenStore],
) -> None:
    """Shards made with another tokenizer than the model's would be noise."""
    wanted = tokenizer.fingerprint
    places = {f"sources.{name}.path": store for name, store in stores.items()}
    places |= {f"validation.{name}": store for name, store in validation.items()}
    problems = [
        UserError(
            f"was prepared with tokenizer {store.tokenizer}, and model.tokenizer {recipe.model.tokenizer} "
            f"is {wanted}",
            field=field,
            value=str(store.prefix),
            mend="prepare it again with model.tokenizer",
        )
        for field, store in places.items()
        if not same(store.tokenizer, wanted)
    ]
    problems += [
        UserError(
            f"ends documents with {store.eos_id}, and EOS of {recipe.model.tokenizer} is {tokenizer.eos_id}",
            field=field,
            value=str(store.prefix),
            mend="prepare it again with model.tokenizer",
        )
        for field, store in places.items()
        if same(store.tokenizer, wanted) and store.eos_id != tokenizer.eos_id
    ]
    if problems:
        raise Problems(problems)


def _trained(recipe: Recipe, vocab_size: int) -> None:
    """Patterns that match no parameter, in the model that will be trained."""
    if all(isinstance(phase.train, str) for phase in recipe.phases):
        return  # nothing that needs the model, whose library takes seconds to import
    from trainer.model.build import check_trained

    if problems := check_trained(recipe, vocab_size):
        raise Problems(problems)


def _memory(recipe: Recipe, preset: dict[str, Any], config: dict[str, Any], world_size: int) -> Memory:
    return estimate(
        config,
        stage=sharding.stage(preset),
        offload_optimizer=sharding.offloads_optimizer(preset),
        offload_parameters=sharding.offloads_parameters(preset),
        world_size=world_size,
        seq_len=recipe.seq_len,
        dtype=recipe.model.dtype,
        recompute=recipe.model.activation_checkpointing == "full",
    )


def _layout(recipe: Recipe, memory: Memory, world_size: int) -> sharding.Layout:
    return sharding.layout(recipe, world_size, memory.largest_micro_batch(available_bytes(world_size)))


def devices() -> int:
    """The ranks that this machine has room for: one per GPU, else one."""
    import torch

    return torch.cuda.device_count() or 1


def available_bytes(world_size: int) -> int:
    """Memory that a rank may plan with: nine tenths of its GPU, else its share of half of the host."""
    import torch

    if torch.cuda.is_available():
        return int(0.9 * torch.cuda.get_device_properties(0).total_memory)
    return int(0.5 * psutil.virtual_memory().total / world_size)


def _mixture(recipe: Recipe, stores: Mapping[str, TokenStore], state: RunState | None) -> Mixture:
    """The mixture, whose past is what the checkpoint recorded and not what the recipe now says of it."""
    sizes = {name: SourceSize.of(store, recipe.seq_len) for name, store in stores.items()}
    if state is None:
        return Mixture.from_recipe(recipe, sizes)
    done = [*(record.samples for record in state.phases[:-1]), state.samples]
    return Mixture.from_recipe(recipe, sizes, taken=state.taken(), done=done, begun_with=state.sources())


def base_lineage(recipe: Recipe, config: Mapping[str, Any]) -> BaseLineage | None:
    """What is known of the base's past: all of it where the base is ours, a checkpoint or its export."""
    base = recipe.model.base
    if base is None:
        return None
    if (Path(base) / commit.MARKER).is_file():
        return BaseLineage.of(RunState.from_json(commit.read(Path(base)).manifest.state), base)
    if (Path(base) / EXPORTED).is_file():
        told = json.loads((Path(base) / EXPORTED).read_text(encoding="utf-8"))
        new_rows = told.pop("new_rows", 0)
        return BaseLineage.of(RunState.from_json(told), base, new_rows, optimizer=False)
    rows = int(config.get("base_vocab_size") or config["vocab_size"])
    new_rows = int(config["vocab_size"]) - rows
    return BaseLineage(base, new_rows=new_rows)
