"""Slurm: the batch script, its submission, and what waits in the queue.

The scripts in `launch/slurm` are made from the texts below: `run.sh` is `FUNCTIONS`, `train.sbatch` and
`study.sbatch` are `BATCH_SCRIPT` for whoever submits them by hand. `rewarm submit` writes the same text,
complete, for one run, and `rewarm study --arms-only` for the arms of one study.
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
requeue_on_75 "$status" "@JOB@" "@NAME@: @WHAT@"
exit "$status"
"""

_ARM = """\
arm=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$2")
[[ -n $arm ]] || {
    echo "@NAME@: $2 has no line $SLURM_ARRAY_TASK_ID" >&2
    exit 2
}
read -r -a overrides <<<"$arm"
set -- "$1" "${overrides[@]}"
"""

_RUN = {"JOB": "$SLURM_JOB_ID", "WHAT": "the run"}
_TASK = {"JOB": "${SLURM_ARRAY_JOB_ID:-}_$SLURM_ARRAY_TASK_ID", "WHAT": "arm $SLURM_ARRAY_TASK_ID"}

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

_SHIPPED_STUDY_ABOUT = """\
# Train many arms of one recipe, one array task each; line I of a file has the overrides of arm I. For a
# paper's study this command writes its arms, and a script of this text with their number:
#
#   rewarm study replay --recipe launch/recipes/llama2-7b-zh.yaml --out runs/study-replay --arms-only
#
# They vary the last phase. Arms of your own set every phase that differs:
#
#   cat > arms.txt <<'ARMS'
#   name=replay-0 phases.0.mixture.replay_ratio=0 phases.1.mixture.replay_ratio=0
#   name=replay-5 phases.0.mixture.replay_ratio=5% phases.1.mixture.replay_ratio=5%
#   name=replay-25 phases.0.mixture.replay_ratio=25% phases.1.mixture.replay_ratio=25%
#   ARMS
#   sbatch --array=1-3 launch/slurm/study.sbatch launch/recipes/llama2-7b-zh.yaml arms.txt
#   rewarm report runs/replay-* --out replay.html
#
# Each arm is a run by itself: signalled before the time limit, requeued, restored. Submit it from the
# repository's root."""

_SHIPPED_STUDY_ARGUMENTS = """\
(($# == 2)) || {
    echo "usage: sbatch --array=1-N launch/slurm/study.sbatch RECIPE ARMS" >&2
    exit 2
}
"""

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

    def options(self, name: str, output: str, tasks: int | None = None) -> str:
        """Write the `#SBATCH` lines of a job, or of an array of so many `tasks`."""
        lines = [
            f"--job-name={shlex.quote(name)}",
            *([f"--array=1-{tasks}"] if tasks else []),
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
    of_study = {
        "ABOUT": _SHIPPED_STUDY_ABOUT,
        "OPTIONS": Resources().options("rewarm-study", "%x-%A-%a.log", 1),
        "ARGUMENTS": _SHIPPED_STUDY_ARGUMENTS + _ARM,
        "FUNCTIONS": _SHIPPED_FUNCTIONS,
        "NAME": "study.sbatch",
    }
    return {
        "run.sh": _SHIPPED_HEAD + _functions(*SHIPPED_COMMANDS),
        "train.sbatch": _filled(BATCH_SCRIPT, fields | _RUN),
        "study.sbatch": _filled(BATCH_SCRIPT, of_study | _TASK),
    }


def script_of_run(
    recipe: Path, name: str, logs: Path, working_folder: Path, commands: tuple[str, str], resources: Resources
) -> str:
    """Return the script that trains `recipe` from `working_folder`; paths in it are absolute.

    Slurm writes what the job prints into `logs`; `commands` plan and train, as shell words.
    """
    about = f"# The run {' '.join(name.split())}, written by `rewarm submit`; requeued until it is done."
    fields = {
        "ABOUT": about,
        "OPTIONS": resources.options(name, _output(logs / "job-", "%j.log")),
        "ARGUMENTS": _from(working_folder, recipe),
        "FUNCTIONS": _functions(*commands),
        "NAME": "rewarm submit",
    }
    return _filled(BATCH_SCRIPT, fields | _RUN)


def script_of_study(
    recipe: Path,
    arms: Path,
    count: int,
    working_folder: Path,
    commands: tuple[str, str],
    resources: Resources,
) -> str:
    """Return the script of an array that trains `count` arms of `recipe`, which are the lines of `arms`.

    Paths in it are absolute; what a task prints goes beside `arms`; `commands` plan and train, as words.
    """
    study = arms.parent.name
    fields = {
        "ABOUT": f"# The study {study}, written by `rewarm study`; each arm is requeued until it is done.",
        "OPTIONS": resources.options(study, _output(arms.parent / "job-", "%A-%a.log"), count),
        "ARGUMENTS": _from(working_folder, recipe, arms) + _ARM,
        "FUNCTIONS": _functions(*commands),
        "NAME": "rewarm study",
    }
    return _filled(BATCH_SCRIPT, fields | _TASK)


def _output(path: Path, pattern: str) -> str:
    """Return where Slurm writes what a job prints, as a shell word: `pattern` alone has fields of Slurm's."""
    return shlex.quote(str(path).replace("%", "%%") + pattern)


def _from(working_folder: Path, *arguments: Path) -> str:
    """Return the lines that go to a folder and set a script's arguments."""
    return f"cd -- {shlex.quote(str(working_folder))} || exit 2\nset -- {shlex.join(map(str, arguments))}\n"


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
