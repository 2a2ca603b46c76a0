"""`rewarm submit` and `status`: runs as jobs of a batch system, and what they are doing."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import trainer
from tokenization.errors import ExitCode
from trainer.cli.answer import print_answer
from trainer.cli.arguments import RUNS, add_command, add_recipe, path_text, positive_number, whole_number
from trainer.machine.log_lines import logger
from trainer.machine.slurm import Resources
from trainer.recipe import load
from trainer.storage.run_directory import find_runs

WATCH_S = 10
"""Seconds between two tables of `--watch`: a run writes its status as often."""

_CLEAR = "\x1b[2J\x1b[H"
"""Clears a terminal."""


def add_jobs(commands: Any) -> None:
    """Add `submit` and `status`."""
    submit = add_command(commands, "submit", submit_command, "recipe.yaml --nodes 8 --partition gpu")
    add_recipe(submit)
    submit.add_argument("--nodes", type=positive_number, required=True, metavar="N", help="number of nodes")
    gpus = "ranks on each node (default: 8); 0 for nodes without GPUs, which have one rank"
    submit.add_argument("--gpus-per-node", type=whole_number, default=8, metavar="N", help=gpus)
    partition = "partition of Slurm (default: the cluster's own)"
    submit.add_argument("--partition", metavar="P", help=partition)
    more = "another option of sbatch, as --sbatch=--time=8:00:00; may be given several times"
    submit.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help=more)
    submit.add_argument("--dry-run", action="store_true", help="print the batch script and change nothing")

    status = add_command(commands, "status", status_command, "runs/a runs/b --watch")
    status.add_argument("runs", type=path_text, nargs="+", metavar="RUN", help=RUNS)
    watch = f"show the table again every SECONDS (default: {WATCH_S}), until Ctrl-C"
    status.add_argument(
        "--watch", type=positive_number, nargs="?", const=WATCH_S, metavar="SECONDS", help=watch
    )


def submit_command(args: argparse.Namespace) -> int:
    """Submit a run to Slurm, which starts it again until it is done."""
    recipe = load.load_recipe(args.recipe, args.overrides)  # before the import of torch, which takes seconds
    from trainer.plan.ahead import found_elsewhere
    from trainer.run.submission import make_submission, submit_run

    if line := found_elsewhere(recipe, args.recipe):
        logger.warning(line)

    resources = Resources(args.nodes, args.gpus_per_node, args.partition, tuple(args.sbatch))
    submission = make_submission(recipe, resources, own_commands(), sys.argv[1:])
    for line in submission.notes:
        logger.warning(line)
    logger.info(submission.decision)
    if submission.exit_code is not None:
        return submission.exit_code
    if args.dry_run:
        print_answer(args, {"script": submission.script}, submission.script)
        return ExitCode.DONE
    job = submit_run(submission)
    lines = [f"job {job} is in the queue", f"rewarm status {shlex.quote(str(recipe.directory))} --watch"]
    result = {"job": job, "run_dir": str(recipe.directory), "script": submission.script}
    print_answer(args, result, "\n".join(lines))
    return ExitCode.DONE


def own_commands() -> tuple[str, str]:
    """What plans and what trains in a batch script: this installation, whatever the job's PATH is."""
    typed, beside = Path(sys.argv[0]), Path(sys.executable).with_name("rewarm")
    rewarm = (typed if typed.name == "rewarm" and typed.is_file() else beside).absolute()
    script = Path(str(trainer.__file__)).absolute().parents[1] / "launch" / "train.py"
    train = [sys.executable, str(script)] if script.is_file() else [str(rewarm), "train"]
    return shlex.quote(str(rewarm)), shlex.join(train)


def status_command(args: argparse.Namespace) -> int:
    """Show what runs are doing: in the queue, live, ended, or gone without a word."""
    if args.watch is None:
        _print_status(args)
        return ExitCode.DONE
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            if not args.json:
                print(f"{_CLEAR}{time.strftime('%H:%M:%S')}")
            _print_status(args)
            sys.stdout.flush()
            time.sleep(args.watch)
    return ExitCode.DONE


def _print_status(args: argparse.Namespace) -> None:
    from trainer.report.status import status_table, statuses_of

    found = statuses_of(find_runs(args.runs))
    print_answer(args, [vars(status) for status in found], status_table(found))
