"""Check the run directory, its checkpoints and the model, and collect the errors of all checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore
from trainer.checkpoint import history, manifest
from trainer.evaluation.held_out import Baseline, measured_on
from trainer.model.architecture import EMBEDDINGS
from trainer.model.base import check_weights, expected_weights
from trainer.model.trained import trained_names
from trainer.model.weights import is_plain, weight_shapes
from trainer.recipe.schema import Recipe
from trainer.recipe.validation import field_of
from trainer.storage.run_directory import RunDirectory

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
    """Refuse a run directory that belongs to another run, by name, or to something else.

    A directory that holds no more than the `checkpoints/` of a run is that run; the log of a batch job is
    not another run.
    """
    directory = recipe.directory
    run = RunDirectory(directory)
    name = _name_of(run)
    if name == recipe.name:
        return
    if name is not None:
        what = f"holds another run, {name!r}, and this recipe is {recipe.name!r}"
    elif directory.exists() and (not directory.is_dir() or run.foreign()):
        what = "is not empty and does not hold a run"
        if directory.is_dir():
            what += f" (it holds {', '.join(map(repr, run.foreign()[:3]))})"
    elif any(above.is_file() for above in directory.parents):
        what = "cannot be created: a parent path is a file"
    else:
        return
    raise UserError(what, field="run_dir", value=str(directory), fix="choose another run_dir")


def _name_of(run: RunDirectory) -> str | None:
    """Return the name of the run in a directory, from its recipe, else from its newest checkpoint's."""
    if not run.path.is_dir():
        return None
    if run.recipe.exists():
        text = run.recipe.read_text(encoding="utf-8")
    elif good := history.scan_checkpoints(run.checkpoints)[0]:
        text = good[-1].manifest.recipe
    else:
        return None
    tree = yaml.safe_load(text)
    return str(tree.get("name")) if isinstance(tree, dict) else None


def newest_checkpoint(
    recipe: Recipe, skip: Mapping[Path, str]
) -> tuple[manifest.Checkpoint | None, list[str]]:
    """Find the newest good checkpoint, and write a line for each damaged one.

    Raises:
        UserError: there are some, and none is good; starting again would not change that.
        InfrastructureError: none is good, and one of them could not be read.
    """
    directory = RunDirectory(recipe.directory).checkpoints
    good, broken = history.scan_checkpoints(directory)
    good = [checkpoint for checkpoint in good if checkpoint.path not in skip]
    if not good and (skip or history.has_committed(directory)):
        history.raise_damage(
            [*broken, *skip.values()] or [f"{directory}: is empty"],
            about=f"{directory}: no checkpoint is good",
            fix="restore one, or choose another run_dir to start again from the base",
        )
    return (good[-1] if good else None), broken


def baselines(checkpoint: manifest.Checkpoint | None) -> dict[str, Baseline]:
    """Read the base's score on each validation set, as far as the run has measured it."""
    scores = checkpoint.manifest.baseline if checkpoint else {}
    return {name: Baseline.from_json(score) for name, score in scores.items()}


def unmeasured(
    recipe: Recipe, validation: Mapping[str, TokenStore], checkpoint: manifest.Checkpoint | None
) -> Iterator[str]:
    """Note each upstream set whose forgetting cannot be measured: the base has no score on the same text."""
    if checkpoint is None:
        return
    for name, store in validation.items():
        if not name.startswith("upstream"):
            continue
        base = baselines(checkpoint).get(name)
        now = measured_on(store, recipe.seq_len, recipe.validation.max_tokens, recipe.document_mask)
        prefix = recipe.validation.paths[name]
        where = f"{field_of(name)}: {prefix!r}: forgetting is not measured, since the base was"
        if base is None:
            yield f"{where} not scored on it before the first step; start in a new run_dir to measure it"
        elif changed := ", ".join(base.unlike(now)):
            fix = "restore that set and validation.max_tokens, or start in a new run_dir"
            yield f"{where} scored on another set ({changed}); {fix}"


def unwatched(recipe: Recipe) -> Iterator[str]:
    """Note that a recipe names no validation set."""
    if not recipe.validation.paths:
        yield (
            "validation: no held-out text is named: what the run learns and forgets is not measured; give "
            "validation.upstream and validation.downstream"
        )


def validation_windows(recipe: Recipe) -> Iterator[str]:
    """Note in which windows the validation sets are scored, if some phase has samples of another length."""
    lengths = {recipe.seq_len_of(phase) for phase in range(len(recipe.phases))}
    if lengths != {recipe.seq_len} and recipe.validation.paths:
        yield (
            f"validation: every phase is scored in windows of seq_len {recipe.seq_len:,}, so that forgetting "
            "is measured on one scale; `rewarm eval --seq-len` scores longer windows"
        )


def check_trained_patterns(config: Mapping[str, Any], recipe: Recipe, vocab_size: int) -> None:
    """Refuse patterns of `train` that match no parameter of the model."""
    if all(isinstance(phase.train, str) for phase in recipe.phases):
        return
    if is_plain(config):
        problems = _patterns_of_plain(config, recipe)
    else:
        from trainer.model.build import check_trained

        problems = check_trained(config, recipe, vocab_size)
    if problems:
        raise UserErrors(problems)


def _patterns_of_plain(config: Mapping[str, Any], recipe: Recipe) -> list[UserError]:
    """Check the patterns against the names of a model that transformers need not build for it."""
    embeddings = EMBEDDINGS[config["model_type"]]
    named = {f"hf.{name}": name in embeddings for name in weight_shapes(config)}
    problems = []
    for phase in recipe.phases:
        try:
            trained_names(named, phase)
        except UserError as problem:
            problems.append(problem)
    return problems


def check_base_weights(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Check that a model can be built from the config, and that the base's files hold its weights.

    Only the headers of the files are read. The files of a hub id are checked when they have been fetched.

    Raises:
        UserErrors: all that is wrong.
    """
    base = recipe.model.base
    expected = expected_weights(config, "model.init" if base is None else "model.base", base)
    if base is not None and Path(base).is_dir() and not (Path(base) / manifest.MARKER).is_file():
        check_weights(Path(base), config, expected)
