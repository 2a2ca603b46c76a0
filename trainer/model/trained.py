"""Which parameters a phase trains, by their names, and what is wrong with that; torch is not needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenization.errors import UserError
from trainer.recipe.schema import Phase, Recipe

BASE_ROWS = "base_vocab_size"
"""The config field with the number of rows before the appended ones; `rewarm model extend` writes it."""


def trained_names(named: Mapping[str, bool], phase: Phase) -> set[str]:
    """Return the names of the parameters that `phase` trains.

    `named` holds all names in the model's order, and whether each one is an embedding.

    Raises:
        UserError: a pattern matches no parameter, or `lr_scale` names embeddings that the phase does not
        train.
    """
    embeddings = {name for name, embedding in named.items() if embedding}
    trained = _matched(named, embeddings, phase)
    if phase.schedule.lr_scale and not trained & embeddings:
        field, fix = f"phases.{phase.name}.schedule.lr_scale", "remove it, or train them"
        raise UserError("scales the LR of embeddings that the phase does not train", field=field, fix=fix)
    return trained


def _matched(named: Mapping[str, bool], embeddings: set[str], phase: Phase) -> set[str]:
    if phase.train == "all":
        return set(named)
    if isinstance(phase.train, str):
        return embeddings
    for pattern in phase.train:
        if not any(re.search(pattern, name) for name in named):
            field, fix = f"phases.{phase.name}.train", f"names are like {', '.join(list(named)[:3])}, …"
            raise UserError("matches no parameter", field=field, value=pattern, fix=fix)
    return {name for name in named if any(re.search(pattern, name) for pattern in phase.train)}


def phase_problems(recipe: Recipe, config: Mapping[str, Any]) -> list[UserError]:
    """Find what is wrong with the phases' `train` and `lr_scale`, as far as config.json shows it."""
    problems = []
    for number, phase in enumerate(recipe.phases):
        where = f"phases.{number}"
        if config.get(BASE_ROWS) is None:
            if "new_rows" in phase.schedule.lr_scale:
                problems.append(not_extended(f"{where}.schedule.lr_scale", "embeddings"))
            if phase.train == "new_rows":
                problems.append(not_extended(f"{where}.train"))
        if phase.train == "new_rows" and phase.keep_optimizer:
            what = "would update old embedding rows with the previous phase's optimizer moments"
            fix = "remove it; new_rows must leave the old rows unchanged"
            problems.append(UserError(what, field=f"{where}.keep_optimizer", fix=fix))
        if isinstance(phase.train, tuple):
            problems += [found for pattern in phase.train if (found := _pattern_problem(pattern, where))]
    return problems


def not_extended(field: str, instead: str = "train: embeddings") -> UserError:
    """Return the error of a phase that trains appended rows where there are none."""
    what = "needs appended rows, but the model was not extended with `rewarm model extend`"
    return UserError(what, field=field, value="new_rows", fix=f"extend it, or use {instead}")


def _pattern_problem(pattern: str, where: str) -> UserError | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return UserError(f"is not a regular expression ({error})", field=f"{where}.train", value=pattern)
    return None
