"""A run on its way to Slurm: planned first, written into its run directory, and then submitted."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trainer
from tokenization import disk
from tokenization.errors import ExitCode, UserError
from trainer.machine.slurm import Resources, queued_jobs, script_of_run, submit_script
from trainer.metrics.heartbeat import queued_status, read_status, write_status
from trainer.plan.make import make_plan
from trainer.recipe.load import dump_recipe
from trainer.recipe.schema import Recipe
from trainer.run.identity import code_version
from trainer.storage.run_directory import RunDirectory

_ENDS = {"refuse": ExitCode.USER, "finished": ExitCode.DONE}
"""The decisions with which nothing is submitted."""


@dataclass(frozen=True)
class Submission:
    """A planned run with its batch script."""

    recipe: Recipe
    script: str
    notes: tuple[str, ...]
    decision: str
    """What starting it here means, in lines for people."""
    exit_code: ExitCode | None
    """Set if there is nothing to submit."""
    record: dict[str, Any]
    """What `submission.json` will hold, without the job."""


def make_submission(
    recipe: Recipe, resources: Resources, commands: tuple[str, str], command_line: Sequence[str]
) -> Submission:
    """Plan a run for the ranks that it will have, and write its batch script; change nothing.

    The job works in this working folder, from which the paths in the recipe are read.

    Raises:
        UserErrors: all that is wrong with the recipe, at once.
        InfrastructureError: there are checkpoints and none of them is good.
    """
    plan = make_plan(recipe, resources.world_size)
    directory = RunDirectory(recipe.directory.absolute())
    script = script_of_run(directory.recipe, recipe.name, directory.logs, Path.cwd(), commands, resources)
    record = {
        "time": time.time(),
        "command": f"rewarm {shlex.join(command_line)}",
        "working_folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "code": code_version(),
        **code_commit(),
        "world_size": resources.world_size,
        "resources": asdict(resources),
    }
    return Submission(
        recipe,
        script,
        (*plan.broken, *plan.notes),
        plan.decision.render(),
        _ENDS.get(plan.decision.kind),
        record,
    )


def submit_run(submission: Submission) -> str:
    """Write script, recipe and code into the run directory, and submit; return the number of the job.

    Raises:
        UserError: a job of this run is in the queue, or Slurm refuses the new one.
        InfrastructureError: the disk or Slurm's controller fails.
    """
    directory = RunDirectory(submission.recipe.directory)
    refuse_second_job(directory)
    with disk.disk_errors(directory.path):
        directory.logs.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(directory.recipe, dump_recipe(submission.recipe))
        disk.write_atomically(directory.job_script, submission.script)
        disk.write_atomically(directory.submission, _json(submission.record | {"job": None}))
        with _queued(directory):
            job = submit_script(directory.job_script)
        disk.write_atomically(directory.submission, _json(submission.record | {"job": job}))
    return job


def refuse_second_job(directory: RunDirectory) -> None:
    """Refuse a run of which Slurm has a job already, waiting or running: it comes back by itself.

    Raises:
        UserError: there is one.
    """
    known = (read_status(directory.path).get("job"), directory.read_submission().get("job"))
    for job, found in (queued_jobs(str(job) for job in known if job) or {}).items():
        fix = f"see it with `rewarm status {directory.path}`, or end it with `scancel {job}` first"
        what = f"is trained by job {job} already, which is {found.state}"
        raise UserError(what, field="run_dir", value=str(directory.path), fix=fix)


@contextlib.contextmanager
def _queued(directory: RunDirectory) -> Iterator[None]:
    """Show the run as queued, unless the block that submits it fails.

    The status is written before, since the job may start at once and write its own.
    """
    before = read_status(directory.path)
    write_status(directory.path, queued_status(directory.path))
    try:
        yield
    except BaseException:
        if before:
            write_status(directory.path, before)
        else:
            directory.status.unlink()
        raise


def code_commit() -> dict[str, Any]:
    """Return the commit of this program's code, and whether its files were changed since; None if unknown."""
    package = Path(str(trainer.__file__)).parent

    def git(*words: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["git", "-C", str(package), *words]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed, perhaps within another project
        return {"commit": None, "modified": None}
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit and commit.strip(), "modified": None if changes is None else bool(changes)}


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
