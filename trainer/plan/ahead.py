"""A plan that is made ahead: for another machine, and before data, tokenizer or base are there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tokenization.errors import RewarmError, UserError
from tokenization.shards.store import find_parts
from trainer.mixer.mixture import SourceSize
from trainer.model.architecture import resolve_config
from trainer.model.trained import BASE_ROWS
from trainer.model.weights import is_plain
from trainer.plan.shapes import SHAPES, known_shape, shape_named_in
from trainer.recipe.schema import Recipe
from trainer.storage.hub import fetch_from_hub

NOT_THERE = "not there yet"
"""What stands for the fingerprint of a source that is not there."""

DEFAULT_VOCABULARY = 32_000
"""Pieces of a vocabulary of which nothing is known: LLaMA-2's."""


@dataclass(frozen=True)
class Ahead:
    """What a plan may assume that training may not."""

    shape: str | None = None
    """Name of the well-known model that the base will be."""
    vocab_size: int | None = None
    """Pieces that the tokenizer will have."""
    available: int | None = None
    """Bytes that a rank may use; None for this machine's."""
    strict: bool = False
    """Whether all must be there, as when the run starts."""


@dataclass
class Missing:
    """What a recipe names that is not there yet, and what follows from that."""

    tokenizer: bool = False
    base: bool = False
    sources: set[str] = field(default_factory=set)
    validation: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def find_missing(recipe: Recipe) -> Missing:
    """Find what a recipe names that is not there: something that is there and damaged is an error as ever."""
    missing, model = Missing(), recipe.model
    missing.sources = {name for name, source in recipe.sources.items() if not has_shards(source.path)}
    held_out = recipe.validation.paths
    missing.validation = {name for name, prefix in held_out.items() if not has_shards(prefix)}
    if missing.sources:
        paths = ", ".join(source.path for name, source in recipe.sources.items() if name in missing.sources)
        missing.notes.append(f"sources: {paths}: {NOT_THERE}; sample counts are not known")
    if missing.validation:
        paths = ", ".join(held_out[name] for name in sorted(missing.validation))
        missing.notes.append(f"validation: {paths}: {NOT_THERE}")
    if not Path(model.tokenizer).exists():
        missing.tokenizer = True
        missing.notes.append(f"model.tokenizer: {model.tokenizer}: {NOT_THERE}")
    if model.base is not None and not Path(model.base).exists():
        try:
            fetch_from_hub(model.base, ["config.json"], "model.base")
        except RewarmError:
            missing.base = True
    return missing


def found_elsewhere(recipe: Recipe, file: str | Path) -> str | None:
    """Say that what a recipe names is not in the working folder, but in one above the recipe's `file`.

    A recipe's paths are those of the working folder, which is another one where it is started from elsewhere.
    """
    named = [recipe.model.tokenizer, recipe.model.base, *(one.path for one in recipe.sources.values())]
    missing = [path for path in named if path and not Path(path).is_absolute() and not _is_there(path)]
    for folder in Path(file).resolve().parents:
        for path in missing:
            if _is_there(str(folder / path)):
                here = f"{path} is not in the working folder, {Path.cwd()}"
                return f"{here}, from which the paths of a recipe are read; it is in {folder}: start there"
    return None


def _is_there(path: str) -> bool:
    """Tell whether a path or the shards of a prefix can be seen: what is forbidden to read cannot."""
    with contextlib.suppress(OSError):
        return os.path.exists(path) or has_shards(path)
    return False


def has_shards(prefix: str) -> bool:
    """Tell whether any file of the shards is there."""
    try:
        return bool(find_parts(prefix))
    except UserError as error:
        return "has no token shards" not in str(error)


def note_unused(ahead: Ahead, recipe: Recipe, missing: Missing, pieces: int | None) -> None:
    """Say in `missing.notes` which flags change nothing, since what they stand for is there.

    Raises:
        UserError: the name of a shape is not known.
    """
    if ahead.shape is not None:
        known_shape(ahead.shape)
        if not missing.base:
            sizes = recipe.model.base or "model.init"
            missing.notes.append(f"--shape {ahead.shape} is not used: the sizes are read from {sizes}")
    if ahead.vocab_size is not None and pieces not in (None, ahead.vocab_size):
        has = f"{recipe.model.tokenizer} has {pieces:,} pieces"
        missing.notes.append(f"--vocab-size {ahead.vocab_size} is not used: {has}")


def config_ahead(recipe: Recipe, ahead: Ahead, missing: Missing, pieces: int | None) -> dict[str, Any]:
    """Return the config of a model without a base that is there: empty if not even its sizes are known.

    `pieces` is the number of the tokenizer's, if it is there. Writes into `missing.notes` what is assumed.

    Raises:
        UserErrors: as `architecture.resolve_config`.
    """
    pieces = pieces if pieces is not None else ahead.vocab_size
    if recipe.model.base is None:
        return _from_init(recipe, pieces if pieces is not None else _assumed_vocabulary(missing))
    base = recipe.model.base
    name = ahead.shape or shape_named_in(base)
    if name is None:
        known = ", ".join(SHAPES)
        missing.notes.append(
            f"model.base: {base}: {NOT_THERE}; memory, FLOPs and hours are not known: give --shape ({known})"
        )
        return {}
    why = "" if ahead.shape else ", as its name says (--shape takes another)"
    missing.notes.append(f"model.base: {base}: {NOT_THERE}; the sizes are those of {name.lower()}{why}")
    config = known_shape(name)
    if pieces is None:
        missing.notes.append(
            f"the vocabulary is taken to be the {config['vocab_size']:,} pieces of {name.lower()}; "
            "--vocab-size takes the extended one"
        )
    elif pieces != config["vocab_size"]:
        config |= {BASE_ROWS: config["vocab_size"], "vocab_size": pieces}
    return config


def _assumed_vocabulary(missing: Missing) -> int:
    missing.notes.append(
        f"the vocabulary is taken to be {DEFAULT_VOCABULARY:,} pieces; --vocab-size takes another"
    )
    return DEFAULT_VOCABULARY


def _from_init(recipe: Recipe, pieces: int) -> dict[str, Any]:
    """Complete a plain `model.init` with LLaMA's defaults; transformers is asked about any other."""
    init = recipe.model.init or {}
    numbers = {
        name: int(value) if isinstance(value, str) and value.isdecimal() else value
        for name, value in init.items()
    }
    defaults = {name: value for name, value in SHAPES["llama2-7b"].items() if name != "num_key_value_heads"}
    config = {
        **defaults,
        "max_position_embeddings": max(recipe.seq_len, 2048),
        "vocab_size": pieces,
    } | numbers
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if is_plain(config) and config["model_type"] == "llama" and hidden % heads == 0:
        return config
    return resolve_config(recipe, pieces)


def stand_in_sizes(recipe: Recipe, missing: Missing) -> Iterator[tuple[str, SourceSize]]:
    """Yield a size for each source that is not there: enough for the run, whatever its share and cap."""
    samples = sum(recipe.phase_samples(phase) for phase in range(len(recipe.phases)))
    for name in sorted(missing.sources):
        source = recipe.sources[name]
        cap = source.max_epochs
        enough = samples if not cap else -(-samples * Fraction(1) // min(cap, Fraction(1)))
        count = int(enough) + source.offset + 1
        yield name, SourceSize(count, NOT_THERE, count * recipe.seq_len + 1)


def complain_of_split(recipe: Recipe, missing: Missing) -> Iterator[str]:
    """Note each role that is split by sizes which are not known."""
    for number, phase in enumerate(recipe.phases):
        for segment in phase.mixture:
            roles: Mapping[str, list[str]] = {
                role: [name for name, source in recipe.sources.items() if source.role == role]
                for role in ("new", "replay")
            }
            for role, members in roles.items():
                by_size = segment.replay_ratio is not None and not any(n in segment.weights for n in members)
                if by_size and len(members) > 1 and missing.sources & set(members):
                    yield (
                        f"phases.{number}.mixture: the {role} sources are split by their sizes, which "
                        "are not known: equal parts are shown"
                    )
