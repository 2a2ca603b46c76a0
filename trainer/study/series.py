"""A study from its name to its page: all arms are planned before the first is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenization import disk
from tokenization.errors import ExitCode, UserError, UserErrors
from trainer.machine.local_ranks import run_together
from trainer.machine.log_lines import logger
from trainer.machine.slurm import Resources, script_of_study
from trainer.metrics.heartbeat import read_status
from trainer.plan.make import make_plan
from trainer.recipe import load
from trainer.recipe.schema import Recipe
from trainer.storage.shipped import train_program
from trainer.study import bases, grids
from trainer.study.progress import Watch, has_diverged
from trainer.study.results import Planned, StudyRecord, write_record
from trainer.study.spec import NOTHING, ArmSpec, Options, flow
from trainer.study.trunk import Trunk, go_on_from, trunk_of

ARMS = "arms.txt"
"""File in a study's directory: a line of overrides per arm, as the script of a job array reads them."""

ARRAY = "arms.sbatch"
"""File in a study's directory: the script of a Slurm array that trains an arm per task."""


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    study: str
    recipe: Path
    out: Path
    overrides: tuple[str, ...] = ()
    """Fields of the recipe that are set in every arm."""
    world_size: int = 1
    """Ranks of each arm."""
    seeds: int = 1
    """So many, from the recipe's own on."""
    sizes: tuple[str, ...] = ()
    options: Options = NOTHING
    unextended: Path | None = None
    """Of `new_rows`: the recipe of the base before its vocabulary was extended."""
    trunk: Trunk | None = None
    """Of `branch`."""


@dataclass(frozen=True)
class ArmRun:
    """An arm of a study as it will be run."""

    planned: Planned
    directory: Path
    overrides: tuple[str, ...]
    finished: bool
    trunk: Trunk | None = None
    """The run that it goes on from, if it has not begun."""

    @property
    def title(self) -> str:
        """The name of its directory, which tells it from all others."""
        return self.planned.directory


def plan_arms(request: Request) -> list[ArmRun]:
    """Return the arms of a study, all of which can be trained without changes.

    Extended models are written, and branches get their run directories; nothing is trained.

    Raises:
        UserErrors: what is wrong, each with the arms that it is wrong with.
        UserError: there is no such study, or the recipe has nothing for it to vary.
    """
    base = load.load_recipe(request.recipe, request.overrides)
    arms: list[ArmRun] = []
    wrong: dict[str, list[str]] = {}
    for spec, planned in _combined(request, base):
        words = _words(request, base, spec, planned)
        try:
            arms.append(_plan(request, planned, words))
        except UserError as error:
            found = error.problems if isinstance(error, UserErrors) else [error]
            for problem in found:
                wrong.setdefault(str(problem), []).append(planned.directory)
    if wrong:
        raise UserErrors([UserError(f"{_named(names)}: {text}") for text, names in wrong.items()])
    return arms


def _named(names: Sequence[str]) -> str:
    """Name one arm, or a few of many."""
    if len(names) == 1:
        return f"arm {names[0]}"
    return f"{len(names)} arms ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _combined(request: Request, base: Recipe) -> Iterator[tuple[ArmSpec, Planned]]:
    """Yield every arm at every size with every seed; those of one seed and size follow each other."""
    unextended = load.load_recipe(request.unextended) if request.unextended else None
    for size, fields in bases.sizes_of_study(base, request.sizes).items():
        words = tuple(f"{field}={flow(value)}" for field, value in fields.items())
        sized = load.load_recipe(request.recipe, (*request.overrides, *words))
        for number in range(request.seeds):
            seed = base.seed + number
            ending = (f"-{size}" if size else "") + (f"-seed-{seed}" if number else "")
            for spec in grids.arm_specs(request.study, sized, request.options):
                own = {**fields, **({"seed": seed} if number else {})}
                if spec.model is not None:
                    own |= bases.model_fields(spec.model, sized, unextended, request.out, seed, size)
                changed = replace(spec, fields={**own, **spec.fields})
                planned = Planned(spec.name, spec.name + ending, seed, size, changed.fields, spec.phase)
                yield changed, planned


def _words(request: Request, base: Recipe, spec: ArmSpec, planned: Planned) -> tuple[str, ...]:
    """Return the overrides of an arm.

    Raises:
        UserError: one has a blank.
    """
    directory = request.out / planned.directory
    own = (f"name={base.name}-{planned.directory}", f"run_dir={directory}")
    words = (*request.overrides, *own, *spec.overrides)
    if blank := next((word for word in words if len(word.split()) != 1), None):
        raise UserError("has a blank, at which a batch script would cut it", value=blank)
    return words


def _plan(request: Request, planned: Planned, words: tuple[str, ...]) -> ArmRun:
    """Plan one arm.

    Raises:
        UserError: it cannot be trained as it is.
    """
    directory, trunk = request.out / planned.directory, request.trunk
    recipe = load.load_recipe(request.recipe, words)
    fresh = not directory.exists()
    if trunk is not None:
        go_on_from(trunk, recipe)
    elif planned.phase:
        trunk = trunk_of(request.out, planned)
    try:
        decision = make_plan(recipe, request.world_size).decision
        if decision.kind == "refuse":
            raise UserError(decision.reason)
    except UserError:
        if fresh and request.trunk is not None:
            shutil.rmtree(directory)  # what was copied for an arm that cannot be
        raise
    finished = decision.kind == "finished" or has_diverged(directory)
    return ArmRun(planned, directory, words, finished, trunk)


def record_arms(request: Request, arms: Sequence[ArmRun]) -> Path:
    """Write what the study is, and the arms for a job array; return the path of the latter.

    Raises:
        UserError: the directory holds another study.
    """
    record = StudyRecord(request.study, str(request.recipe), tuple(arm.planned for arm in arms))
    write_record(request.out, record)
    disk.write_atomically(request.out / ARMS, "".join(" ".join(arm.overrides) + "\n" for arm in arms))
    return request.out / ARMS


def write_array(
    request: Request, listed: Path, tasks: int, commands: tuple[str, str], job: Resources
) -> Path:
    """Write the script of an array that trains the `tasks` arms in `listed` from here; return its path.

    `commands` plan and train, as shell words.
    """
    recipe, arms = request.recipe.absolute(), listed.absolute()
    script = script_of_study(recipe, arms, tasks, Path.cwd(), commands, job)
    disk.write_atomically(request.out / ARRAY, script)
    return request.out / ARRAY


def train_arms(request: Request, arms: Sequence[ArmRun], at_once: int = 1) -> int:
    """Train the arms that are not finished under the deepspeed launcher, `at_once` of them at a time.

    What several arms share is trained once, before them. An arm that fails leaves the others to go on; a
    signal, and a failure that goes away by itself, end all. The same call goes on with what is left, from
    its checkpoints. Returns the first exit status that is not 0 of an arm that has not diverged.
    """
    for arm in arms:
        if arm.finished:
            logger.info(f"arm {arm.title}: is finished")
    left = [arm for arm in arms if not arm.finished]
    recipe = str(request.recipe)
    trunks = _trunks(request, left)
    if trunks and (status := _run(request, trunks, [], at_once)):
        return status
    for arm in left:
        if arm.trunk is not None:
            go_on_from(arm.trunk, load.load_recipe(request.recipe, arm.overrides))
    return _run(request, {arm.title: (recipe, *arm.overrides) for arm in left}, arms, at_once)


def _trunks(request: Request, arms: Sequence[ArmRun]) -> dict[str, Sequence[str]]:
    """Return the runs that arms go on from, and which are not there yet, by name."""
    found: dict[str, Sequence[str]] = {}
    for arm in arms:
        if arm.trunk is None or request.trunk is not None or arm.directory.exists():
            continue
        directory = arm.trunk.directory
        if directory.name not in found and read_status(directory).get("state") != "finished":
            recipe = load.load_recipe(request.recipe, arm.overrides)
            shared = [phase.model_dump(mode="json") for phase in recipe.phases[: arm.planned.phase]]
            name = recipe.name.removesuffix(arm.title) + directory.name
            own = (f"name={name}", f"run_dir={directory}", f"phases={flow(shared)}")
            found[directory.name] = (str(request.recipe), *arm.overrides, *own)
    return found


def _run(request: Request, words: dict[str, Any], arms: Sequence[ArmRun], at_once: int) -> int:
    """Run training commands by name; return the first exit status that is not 0."""
    watch = Watch({arm.title: arm.directory for arm in arms}, at_once)
    programs = {name: [*train_program(), *program] for name, program in words.items()}
    if not programs:
        return ExitCode.DONE
    logger.info(f"{len(programs)} to train, {at_once} at a time: {', '.join(programs)}")
    statuses = run_together(
        programs,
        request.world_size,
        at_once,
        started=watch.started,
        ended=partial(_ended, watch, request.out),
        beat=watch.beat,
    )
    bad = [s for name, s in statuses.items() if s and not has_diverged(request.out / name)]
    return bad[0] if bad else (0 if len(statuses) == len(programs) else ExitCode.REQUEUE)


def _ended(watch: Watch, out: Path, name: str, status: int) -> bool:
    """Note that a run has ended; tell whether others may start."""
    watch.ended(name)
    if not status:
        return True
    stopped = status in (ExitCode.REQUEUE, ExitCode.INTERRUPTED) or status > 128
    if has_diverged(out / name):
        logger.warning(f"{name}: diverged; that is its result, and it is not trained again")
        return not stopped
    logger.warning(f"{name}: ended with status {status}; the same command goes on from there")
    return not stopped
