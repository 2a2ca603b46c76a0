"""What arms share is trained once: a run that others go on from, each in a run directory of its own."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tokenization import disk
from tokenization.errors import UserError
from trainer.checkpoint.history import last_committed, list_checkpoints, name_of, step_of
from trainer.checkpoint.manifest import Checkpoint, read_checkpoint
from trainer.recipe import load
from trainer.recipe.numbers import count
from trainer.recipe.schema import Recipe
from trainer.scheduler.state import RunState
from trainer.storage.run_directory import RunDirectory
from trainer.study.results import Planned


@dataclass(frozen=True)
class Trunk:
    """A run, and the checkpoint of it that arms go on from."""

    directory: Path
    step: int | None = None
    """None: the newest."""


def trunk_of(out: Path, planned: Planned) -> Trunk:
    """Return the run in a study's directory that an arm goes on from, if it studies a later phase."""
    size, number = planned.size and f"-{planned.size}", planned.fields.get("seed")
    return Trunk(out / f"trunk{size}{'' if number is None else f'-seed-{number}'}")


def find_branching(word: str) -> tuple[Trunk, RunState]:
    """Read `RUN@TOKENS`: the checkpoint of a run after so many tokens, and its position.

    Raises:
        UserError: it is written otherwise, the run is not there, or it has no checkpoint at these tokens.
    """
    run, at, written = word.rpartition("@")
    try:
        tokens = count(written)
    except ValueError as error:
        fix = "write a run directory, @, and the tokens of a checkpoint: runs/long@10e9"
        raise UserError("is not RUN@TOKENS", field="--from", value=word, fix=fix) from error
    if not at or not run:
        raise UserError(
            "is not RUN@TOKENS", field="--from", value=word, fix="write for example runs/long@10e9"
        )
    directory = RunDirectory(run)
    if not directory.recipe.exists():
        raise UserError("is not a run directory", field="--from", value=run, fix="give the run_dir of a run")
    found: dict[int, Checkpoint] = {}
    for path in list_checkpoints(directory.checkpoints):
        one = read_checkpoint(path)
        found[RunState.from_json(one.manifest.state).tokens] = one
    if tokens not in found:
        fix = f"it has checkpoints at {', '.join(f'{one:,}' for one in sorted(found)) or 'no'} tokens"
        raise UserError("has no checkpoint at these tokens", field="--from", value=word, fix=fix)
    chosen = found[tokens]
    return Trunk(Path(run), step_of(chosen.path)), RunState.from_json(chosen.manifest.state)


def go_on_from(trunk: Trunk, recipe: Recipe) -> None:
    """Make the run directory of `recipe` hold the trunk up to its checkpoint; an existing one is left alone.

    Checkpoints are never rewritten, so their files are shared where the disk can link them.

    Raises:
        UserError: the trunk has no such checkpoint.
        InfrastructureError: the disk is full or fails.
    """
    run = recipe.directory
    if run.exists():
        return
    source, step = RunDirectory(trunk.directory), trunk.step
    if step is None:
        step = last_committed(source.checkpoints) or 0
    kept = source.checkpoints / name_of(step)
    if not kept.is_dir():
        raise UserError("has no checkpoint to go on from", file=source.path, fix="train the trunk again")
    draft = run.with_name(f"{run.name}.partial")
    with disk.disk_errors(draft):
        shutil.rmtree(draft, ignore_errors=True)
        own = RunDirectory(draft)
        shutil.copytree(kept, own.checkpoints / kept.name, copy_function=_link)
        for path in (source.identity, source.left_out):
            if path.exists():
                shutil.copy2(path, draft / path.name)
        own.recipe.write_text(load.dump_recipe(recipe), encoding="utf-8")
        own.last_committed.write_text(json.dumps({"step": step}), encoding="utf-8")
        own.metrics.write_text(_records(source.metrics, step), encoding="utf-8")
        os.rename(draft, run)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _records(metrics: Path, step: int) -> str:
    """Return the lines of the trunk's metrics up to a step, as a run of its own."""
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "restored_step" in record:
            kept.append({**record, "run_id": ""})
        elif record.get("step", 0) <= step:
            kept.append(record)
    return "".join(json.dumps(record) + "\n" for record in kept)
