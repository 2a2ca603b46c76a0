"""A study from its name to its page: all arms are planned before the first is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenization import disk
from tokenization.errors import UserError, UserErrors
from trainer.machine.local_ranks import run_ranks
from trainer.machine.log_lines import logger
from trainer.plan.make import make_plan
from trainer.recipe import load
from trainer.report.page import write_report
from trainer.study import grids

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "train.py"

ARMS = "arms.txt"
"""File in a study's directory: a line of overrides per arm, as launch/slurm/study.sbatch reads them."""


@dataclass(frozen=True)
class ArmRun:
    """An arm of a study as it will be run."""

    name: str
    directory: Path
    overrides: tuple[str, ...]
    finished: bool


def plan_arms(
    name: str, recipe: str | Path, out: str | Path, overrides: Sequence[str], world_size: int
) -> list[ArmRun]:
    """Return the arms of a study, all of which can be trained without changes.

    Raises:
        Problems: what is wrong with each arm.
        UserError: there is no such study, or the recipe has nothing for it to vary.
    """
    base = load.load_recipe(recipe, overrides)
    trials, problems = [], []
    for variant in grids.arm_specs(name, base):
        directory = Path(out) / variant.name
        words = (*overrides, f"name={base.name}-{variant.name}", f"run_dir={directory}", *variant.overrides)
        if blank := next((word for word in words if len(word.split()) != 1), None):
            raise UserError("has a blank, at which a batch script would cut it", value=blank)
        try:
            decision = make_plan(load.load_recipe(recipe, words), world_size).decision
            if decision.kind == "refuse":
                raise UserError(decision.reason)
        except UserError as error:
            found = error.problems if isinstance(error, UserErrors) else [error]
            problems += [UserError(f"arm {variant.name}: {one}") for one in found]
            continue
        trials.append(ArmRun(variant.name, directory, words, decision.kind == "finished"))
    if problems:
        raise UserErrors(problems)
    return trials


def write_arms(trials: Sequence[ArmRun], out: Path) -> Path:
    """Write the arms to a file for launch/slurm/study.sbatch, and return its path."""
    out.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(out / ARMS, "".join(" ".join(trial.overrides) + "\n" for trial in trials))
    return out / ARMS


def train_arms(trials: Sequence[ArmRun], recipe: str | Path, world_size: int) -> int:
    """Train the arms that are not finished, one after another, under the deepspeed launcher.

    Ends with the first status that is not 0; the same call goes on with that arm, from its checkpoint.
    """
    for number, trial in enumerate(trials, start=1):
        where = f"arm {number} of {len(trials)}, {trial.name}"
        if trial.finished:
            logger.info(f"{where}: is finished")
            continue
        logger.info(f"{where}: {' '.join(trial.overrides)}")
        if status := run_ranks([str(SCRIPT), str(recipe), *trial.overrides], world_size):
            logger.warning(f"{where}: ended with status {status}; the same command goes on from there")
            return status
    return 0


def conclude(name: str, trials: Sequence[ArmRun], out: Path) -> str:
    """Write the page about all arms: the question, the table, and what the papers found."""
    study, runs = grids.find_study(name), [trial.directory for trial in trials]
    table = write_report(runs, out / "report.html")
    return "\n".join([study.question, "", table, "", f"The papers: {study.found}."])
