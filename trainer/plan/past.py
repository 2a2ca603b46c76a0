"""What a run began with is what it goes on with: the model of the checkpoint, whatever its base is now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenization.errors import UserError
from trainer.checkpoint.manifest import Checkpoint
from trainer.mixer.description import PassedOver
from trainer.model import architecture, tokens
from trainer.model.rope import CHANGED
from trainer.recipe.schema import Recipe
from trainer.scheduler.state import RunState
from trainer.storage.hub import GENERATION, read_generation
from trainer.storage.run_directory import RunDirectory

NOT_THE_MODEL = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
    | {tokens.TOKENIZER}
)
"""Fields of a config.json that do not change what the model computes in training."""


def read_left_out(directory: RunDirectory) -> list[dict[str, Any]]:
    """Read what the run directory records as left out; nothing if no spike was ever rolled back there.

    Raises:
        UserError: the record is damaged: without it the run would train other samples than before.
    """
    try:
        found = json.loads(directory.left_out.read_text(encoding="utf-8"))
        windows(found)
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        fix = "restore it from a copy, or start in another run_dir from a checkpoint of this one"
        raise UserError(f"is damaged ({error})", file=directory.left_out, fix=fix) from error
    entries: list[dict[str, Any]] = found
    return entries


def windows(entries: Sequence[Mapping[str, Any]]) -> list[PassedOver]:
    """Return the samples of each entry of the record."""
    return [PassedOver(*(int(entry[name]) for name in ("phase", "start", "stop"))) for entry in entries]


def saved_config(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """Return the model's config as the run has it; None before its first checkpoint.

    Raises:
        UserError: the checkpoint's config.json is damaged.
    """
    if checkpoint is None or not (checkpoint.path / "config.json").is_file():
        return None
    return architecture.read_config(checkpoint.path)


def own_config(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """Return the whole config that the run's checkpoint carries; None if it must be read from the base."""
    config = saved_config(checkpoint)
    return config if config is not None and "model_type" in config else None


def phase_now(recipe: Recipe, state: RunState | None) -> tuple[int, bool]:
    """Return the phase that a start trains, and whether a checkpoint holds it already."""
    if state is None:
        return 0, False
    done = state.samples >= recipe.phase_samples(min(state.phase, len(recipe.phases) - 1), state.samples)
    if done and state.phase + 1 < len(recipe.phases):
        return state.phase + 1, False
    return min(state.phase, len(recipe.phases) - 1), True


def changed_base(recipe: Recipe, config: Mapping[str, Any], state: RunState | None) -> Iterator[str]:
    """Note what has changed in the base's config.json since the run began; the run goes on without it.

    What a phase of the run has changed of the model is not told.

    A base that has gone, or whose config.json cannot be read any more, is not needed.
    """
    base = recipe.model.base
    if base is None or not (Path(base) / "config.json").is_file():
        return
    with suppress(UserError):
        now = architecture.read_config(base)
        own = CHANGED if state is not None and any(record.rope for record in state.phases) else frozenset()
        names = sorted((set(now) | set(config)) - NOT_THE_MODEL - own)
        changed = [
            f"{name} {_shown(config.get(name))} → {_shown(now.get(name))}"
            for name in names
            if config.get(name) != now.get(name)
        ]
        if changed:
            yield (
                f"model.base: {base!r}: its config.json has changed since the run began "
                f"({', '.join(changed)}); the run goes on with the model of its checkpoint"
            )


def generation_of(recipe: Recipe, checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """Return the settings of generation that the run hands on: the checkpoint's, else the base's.

    Raises:
        UserError: the file is damaged.
    """
    base = recipe.model.base
    if checkpoint is None:
        return read_generation(base) if base else None
    if (checkpoint.path / GENERATION).is_file():
        return read_generation(checkpoint.path)
    return read_generation(base) if base and Path(base).is_dir() else None


def _shown(value: Any) -> str:
    return json.dumps(value)
