"""The checks of a plan that read the run directory and the checkpoints in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml

from tokenization.errors import InfrastructureError, UserError, UserErrors
from tokenization.shards.store import TokenStore
from trainer.checkpoint import history, manifest
from trainer.evaluation.held_out import Baseline, measured_on
from trainer.recipe.schema import Recipe
from trainer.storage.run_directory import LOCK, RESOLVED, checkpoints_of

_LEFT_AT_START = {LOCK, f"{RESOLVED}.tmp"}
"""What a start that was killed before it began leaves in a run directory."""


T = TypeVar("T")


class _FailedBefore(Exception):
    """A check needs the result of one that failed."""


def _no_result() -> NoReturn:
    raise _FailedBefore


class ErrorCollector:
    """Calls checks one after another and keeps their errors, to raise all of them at once."""

    def __init__(self) -> None:
        self.problems: list[UserError] = []

    def __call__(self, check: Callable[[], T]) -> Callable[[], T]:
        """Call a check; return a function that gives its result.

        A later check that asks for the result of one that failed is skipped: that error is kept already.
        """
        try:
            result = check()
            return lambda: result
        except UserErrors as several:
            self.problems += several.problems
        except UserError as problem:
            self.problems.append(problem)
        except _FailedBefore:
            pass
        return _no_result

    def raise_problems(self) -> None:
        """Raise what the checks found, if they found anything."""
        if self.problems:
            raise UserErrors(self.problems)


def refuse_another_run(recipe: Recipe) -> None:
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
    raise UserError(what, field="run_dir", value=str(directory), fix="give another run_dir")


def newest_checkpoint(recipe: Recipe, skip: Collection[Path]) -> tuple[manifest.Checkpoint | None, list[str]]:
    """The newest good checkpoint, and a line for each that is not good."""
    good, broken = history.scan_checkpoints(checkpoints_of(recipe))
    good = [checkpoint for checkpoint in good if checkpoint.path not in skip]
    if not good and (skip or history.has_committed(checkpoints_of(recipe))):
        listed = "; ".join([*broken, *(f"{path}: damaged" for path in skip)])
        raise InfrastructureError(
            f"{checkpoints_of(recipe)}: no checkpoint is good ({listed}); restore one, or give another run_dir "
            "to begin again from the base"
        )
    return (good[-1] if good else None), broken


def baselines(checkpoint: manifest.Checkpoint | None) -> dict[str, Baseline]:
    """What the base scored on each validation set, as far as the run has measured it."""
    told = checkpoint.manifest.baseline if checkpoint else {}
    return {name: Baseline.from_json(base) for name, base in told.items()}


def unmeasured(
    recipe: Recipe, validation: Mapping[str, TokenStore], checkpoint: manifest.Checkpoint | None
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


def check_trained_patterns(recipe: Recipe, vocab_size: int) -> None:
    """Patterns that match no parameter, in the model that will be trained."""
    if all(isinstance(phase.train, str) for phase in recipe.phases):
        return  # nothing that needs the model, whose library takes seconds to import
    from trainer.model.build import check_trained

    if problems := check_trained(recipe, vocab_size):
        raise UserErrors(problems)
