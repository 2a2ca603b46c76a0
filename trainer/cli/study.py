"""`rewarm study`: a paper's experiment with the user's recipe and data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenization.errors import ExitCode
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, path_text, positive_number
from trainer.study.grids import STUDIES


def add_study(commands: Any) -> None:
    """Add `study`."""
    example = "replay --recipe recipe.yaml --out runs/replay phases.0.tokens=1e8"
    study = add_command(commands, "study", study_command, example)
    study.add_argument("name", metavar="NAME", help=", ".join(STUDIES))
    study.add_argument("--recipe", type=path_text, required=True)
    study.add_argument("--out", type=path_text, required=True, metavar="DIR")
    ranks = "number of ranks of each arm (default: one per GPU, or 1)"
    study.add_argument("--nproc", type=positive_number, help=ranks)
    study.add_argument("--arms-only", action="store_true", help="only write DIR/arms.txt, for a batch system")
    fields = "change a field of the recipe in every arm"
    study.add_argument("overrides", nargs="*", metavar="field=value", help=fields)


def study_command(args: argparse.Namespace) -> int:
    """Repeat a paper's experiment with your recipe, before you spend the cluster."""
    from trainer.machine.devices import count_devices
    from trainer.study import series

    out, world_size = Path(args.out), args.nproc or count_devices()
    arms = series.plan_arms(args.name, args.recipe, out, args.overrides, world_size)
    listed = series.write_arms(arms, out)
    result = {"arms": str(listed), "runs": [str(arm.directory) for arm in arms]}
    if args.arms_only:
        submit = f"sbatch --array=1-{len(arms)} launch/slurm/study.sbatch {args.recipe} {listed}"
        print_answer(args, result, f"{listed}: {len(arms)} arms\n{submit}")
        return ExitCode.DONE
    if status := series.train_arms(arms, args.recipe, world_size):
        return status
    page = out / "report.html"
    text = f"{series.conclude(args.name, arms, out)}\n\n{page}"
    print_answer(args, {**result, "report": str(page)}, text)
    return ExitCode.DONE
