"""Slurm: the batch script, its submission, and what waits in the queue.

The scripts in `launch/slurm` are made from the texts below: `run.sh` is `FUNCTIONS`, and `train.sbatch` is
`BATCH_SCRIPT` for whoever submits it by hand. `rewarm submit` writes the same text, complete, for one run.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenization.errors import InfrastructureError, UserError

PATIENCE_S = 60.0
"""How long a command of Slurm may take; its controller may be busy."""

SHIPPED_COMMANDS = (".venv/bin/rewarm", ".venv/bin/python launch/train.py")
"""What plans and what trains, from the repository's root."""

_ELSEWHERE = "submit on a machine of the cluster, or see the script with --dry-run"

FUNCTIONS = """\
# run_recipe RECIPE [field=value …] trains; its status is that of the rank that failed first.
# requeue_on_75 STATUS JOB WHAT puts the job back into the queue if the status says that this helps.

run_recipe() {
    local status
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # What can be known without a GPU is checked here, once, before all ranks start.
    @PLAN@ plan "$@" --gpus "$SLURM_NTASKS" --strict >/dev/null || { as_stop $?; return; }
    export REWARM_STATUS=$PWD/.rewarm-$SLURM_JOB_ID.status
    rm -f "$REWARM_STATUS"
    # srun starts one task per rank: the deepspeed launcher would pass signals on one rank after the other.
    srun --kill-on-bad-exit=1 @TRAIN@ "$@" || as_stop $?
    status=$?
    # srun reports the highest status, which may be that of a rank ended because another one failed.
    [[ -s $REWARM_STATUS ]] && status=$(sort -n "$REWARM_STATUS" | head -n 1)
    rm -f "$REWARM_STATUS"
    return "$status"
}

# A program that is asked to stop before Python listens ends with 128 + the signal; a moment later, with 75.
as_stop() {
    (($1 > 128)) && case $(kill -l "$1" 2>/dev/null) in HUP | USR1 | USR2 | TERM | XCPU) return 75 ;; esac
    return "$1"
}

# 75 is EX_TEMPFAIL: stopped by a signal after its save, or the disk, the network or a node failed.
requeue_on_75() {
    local most_restarts=${REWARM_MOST_RESTARTS:-50}
    (($1 == 75)) || return 0
    if ((${SLURM_RESTART_COUNT:-0} < most_restarts)); then
        echo "$3 stopped before its end; requeueing job $2"
        scontrol requeue "$2"
    else
        echo "$3 was restarted $most_restarts times already (REWARM_MOST_RESTARTS); not requeueing" >&2
    fi
}
"""

BATCH_SCRIPT = """\
#!/usr/bin/env bash
@ABOUT@
@OPTIONS@
set -uo pipefail

@ARGUMENTS@
@FUNCTIONS@
run_recipe "$@"
status=$?
requeue_on_75 "$status" "$SLURM_JOB_ID" "@NAME@: the run"
exit "$status"
"""

_SHIPPED_ABOUT = """\
# One run on one or more nodes; requeued until it is done. `rewarm submit` writes this script for one run.
#
#   sbatch --nodes=8 launch/slurm/train.sbatch launch/recipes/llama2-70b-zh.yaml [field=value …]
#
# Five minutes before the time limit, and on preemption, every rank finishes its step, saves, and exits with
# 75; then this script puts the job back into the queue, and the same command continues from the checkpoint.
# Submit it from the repository's root. --chdir and --export are sbatch's own."""

_SHIPPED_ARGUMENTS = """\
(($# > 0)) || {
    echo "usage: sbatch launch/slurm/train.sbatch RECIPE [field=value …]" >&2
    exit 2
}"""

_SHIPPED_FUNCTIONS = """\
# Slurm runs a copy of this script, so its neighbour is named from the repository's root.
source launch/slurm/run.sh || exit 2"""

_SHIPPED_HEAD = """\
# Sourced by train.sbatch and study.sbatch in the repository's root: plan, start a rank per task, requeue.
#
"""


@dataclass(frozen=True)
class Resources:
    """What a job asks Slurm for; a rank per GPU, or per node where there are none."""

    nodes: int = 1
    gpus_per_node: int = 8
    partition: str | None = None
    more: tuple[str, ...] = ()
    """Further options of sbatch, such as `--time=8:00:00`; they win over the script's own."""

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.nodes * max(1, self.gpus_per_node)

    def options(self, name: str, output: str) -> str:
        """Write the `#SBATCH` lines of a job."""
        lines = [
            f"--job-name={shlex.quote(name)}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={max(1, self.gpus_per_node)}",
            f"--gpus-per-node={self.gpus_per_node}",
            "--cpus-per-task=12",
            "--mem=0",
            "--exclusive",
            "--time=24:00:00",
            "--signal=USR1@300",
            "--requeue",
            "--open-mode=append",
            f"--output={output}",
            *([f"--partition={shlex.quote(self.partition)}"] if self.partition else []),
            *(shlex.quote(option) for option in self.more),
        ]
        return "\n".join(f"#SBATCH {line}" for line in lines)


def shipped_scripts() -> dict[str, str]:
    """Return the scripts in `launch/slurm` that are made here, by name."""
    fields = {
        "ABOUT": _SHIPPED_ABOUT,
        "OPTIONS": Resources().options("rewarm", "%x-%j.log"),
        "ARGUMENTS": _SHIPPED_ARGUMENTS,
        "FUNCTIONS": _SHIPPED_FUNCTIONS,
        "NAME": "train.sbatch",
    }
    return {
        "run.sh": _SHIPPED_HEAD + _functions(*SHIPPED_COMMANDS),
        "train.sbatch": _filled(BATCH_SCRIPT, fields),
    }


def script_of_run(
    recipe: Path, name: str, logs: Path, working_folder: Path, commands: tuple[str, str], resources: Resources
) -> str:
    """Return the script that trains `recipe` from `working_folder`; paths in it are absolute.

    Slurm writes what the job prints into `logs`; `commands` plan and train, as shell words.
    """
    output = str(logs / "job-").replace("%", "%%")
    about = f"# The run {' '.join(name.split())}, written by `rewarm submit`; requeued until it is done."
    root = f"cd -- {shlex.quote(str(working_folder))} || exit 2\nset -- {shlex.quote(str(recipe))}\n"
    fields = {
        "ABOUT": about,
        "OPTIONS": resources.options(name, shlex.quote(output + "%j.log")),
        "ARGUMENTS": root,
        "FUNCTIONS": _functions(*commands),
        "NAME": "rewarm submit",
    }
    return _filled(BATCH_SCRIPT, fields)


def _functions(plan: str, train: str) -> str:
    return _filled(FUNCTIONS, {"PLAN": plan, "TRAIN": train})


def _filled(text: str, fields: dict[str, str]) -> str:
    for field, value in fields.items():
        text = text.replace(f"@{field}@", value)
    return text


def submit_script(script: Path) -> str:
    """Submit a batch script; return the number of the job.

    Raises:
        UserError: Slurm is not installed here, belongs to no cluster, or refuses the job.
        InfrastructureError: its controller does not answer.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not installed on this machine", fix=_ELSEWHERE)
    try:
        done = _call("sbatch", "--parsable", str(script))
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(f"sbatch has not answered within {PATIENCE_S:.0f} s") from error
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0]  # the cluster's name may follow
    why = " ".join(done.stderr.split()) or f"sbatch ended with status {done.returncode}"
    if "contact" in why.lower() or "timed out" in why.lower():
        raise InfrastructureError(f"Slurm's controller does not answer: {why}")
    if "configuration source" in why:
        raise UserError(f"Slurm's commands here do not belong to a cluster: {why}", fix=_ELSEWHERE)
    raise UserError(
        f"Slurm refuses the job: {why}", file=script, fix="change --partition, --nodes or --sbatch"
    )


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm knows."""

    state: str
    """PENDING, RUNNING, …"""
    reason: str
    """Why it waits."""
    nodes: str

    @property
    def waits(self) -> bool:
        """Whether none of it runs now."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")


def queued_jobs(jobs: Iterable[str]) -> dict[str, QueuedJob] | None:
    """Return those of `jobs` that are in the queue, waiting or running; None where Slurm cannot be asked."""
    wanted = sorted(set(jobs))
    if not wanted:
        return {}
    if shutil.which("squeue") is None:
        return None
    try:
        done = _call("squeue", "--noheader", "--format=%A|%T|%r|%N", f"--jobs={','.join(wanted)}")
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        return {} if "Invalid job id" in done.stderr else None  # of a single job that has left the queue
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 3]
    return {job: QueuedJob(state, reason, nodes) for job, state, reason, nodes in rows}


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    words: Sequence[str] = command
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
