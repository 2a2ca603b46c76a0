"""Slurm's commands and the batch script, with stand-ins that answer as Slurm does."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tokenization.errors import InfrastructureError, UserError
from trainer.machine import slurm
from trainer.machine.slurm import (
    QueuedJob,
    Resources,
    queued_jobs,
    script_of_run,
    script_of_study,
    submit_script,
)


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Install a command that says this, to both streams, and ends with this status."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def install(command, output="", error="", status=0):
        tool = tmp_path / "bin" / command
        tool.write_text(
            f"#!/bin/sh\necho \"$*\" >>'{tmp_path}/calls'\ncat <<'E'\n{output}\nE\n"
            f"cat >&2 <<'E'\n{error}\nE\nexit {status}\n"
        )
        tool.chmod(0o755)

    return install


def test_the_number_of_the_job_is_told_whatever_the_cluster_is_called(answer, tmp_path):
    answer("sbatch", "4711;alps")
    assert submit_script(tmp_path / "job.sbatch") == "4711"
    assert (tmp_path / "calls").read_text() == f"--parsable {tmp_path / 'job.sbatch'}\n"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("sbatch: error: invalid partition specified: gpus\nsbatch: error: Batch job failed", UserError),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", InfrastructureError),
    ],
)
def test_what_slurm_says_is_one_line(answer, tmp_path, error, kind):
    answer("sbatch", error=error, status=1)
    with pytest.raises(kind, match="sbatch: error: ") as told:
        submit_script(tmp_path / "job.sbatch")
    assert "\n" not in str(told.value)


def test_a_machine_that_belongs_to_no_cluster_is_told_where_to_go(answer, tmp_path):
    answer("sbatch", error="sbatch: fatal: Could not establish a configuration source", status=1)
    with pytest.raises(UserError, match=r"do not belong to a cluster: .*submit on a machine of the cluster"):
        submit_script(tmp_path / "job.sbatch")


def test_a_machine_without_slurm_is_told_where_to_go(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"sbatch is not installed .*--dry-run"):
        submit_script(tmp_path / "job.sbatch")
    assert queued_jobs(["1"]) is None
    assert queued_jobs([]) == {}


def test_jobs_in_the_queue(answer):
    answer("squeue", "7|PENDING|Priority|\n8|RUNNING|None|n[1-2]")
    assert queued_jobs(["8", "7", "9"]) == {
        "7": QueuedJob("PENDING", "Priority", ""),
        "8": QueuedJob("RUNNING", "None", "n[1-2]"),
    }


def test_a_single_job_that_has_left_the_queue_is_not_there(answer):
    answer("squeue", error="slurm_load_jobs error: Invalid job id specified", status=1)
    assert queued_jobs(["7"]) == {}
    answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    assert queued_jobs(["7"]) is None


def test_a_controller_that_does_not_answer_is_not_waited_for_without_end(answer, monkeypatch, tmp_path):
    def late(*command, **_):
        raise subprocess.TimeoutExpired(command, 1)

    answer("sbatch")
    answer("squeue")
    monkeypatch.setattr(slurm.subprocess, "run", late)
    assert queued_jobs(["7"]) is None
    with pytest.raises(InfrastructureError, match="has not answered"):
        submit_script(tmp_path / "job.sbatch")


def test_the_script_of_a_run_is_complete_and_needs_no_folder_or_path(answer, tmp_path):
    """Names with blanks, quotes and percent signs reach Slurm and the commands as they are."""
    for command in ("srun", "scontrol", "rewarm it"):
        answer(command, status=75 if command == "srun" else 0)
    folder = tmp_path / "a b's 100%"
    folder.mkdir()
    resources = Resources(2, 4, "big mem", ("--time=8:00:00", "--comment=a b"))
    commands = (f"'{tmp_path}/bin/rewarm it'", "python 'train it.py'")
    script = script_of_run(Path("/x y/r.yaml"), "zh %j", folder, folder, commands, resources)
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert lines[:4] == ["--job-name='zh %j'", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"]
    assert lines[-3:] == ["--partition='big mem'", "--time=8:00:00", "'--comment=a b'"]
    assert "100%%/job-%j.log" in lines[-4]
    file = tmp_path / "job.sbatch"
    file.write_text(script)
    environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_NTASKS": str(resources.world_size)}
    done = subprocess.run(["bash", str(file)], env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "plan /x y/r.yaml --gpus 8 --strict",
        "--kill-on-bad-exit=1 python train it.py /x y/r.yaml",
        "requeue 7",
    ]


def test_nodes_without_gpus_have_one_rank_each():
    resources = Resources(3, 0)
    assert resources.world_size == 3
    assert "#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=0" in resources.options("x", "y")


@pytest.mark.parametrize(("task", "status", "arm"), [("2", 75, "name=b seed=2"), ("3", 2, None)])
def test_the_array_of_a_study_is_complete_and_trains_the_arm_of_its_task(answer, tmp_path, task, status, arm):
    for command in ("srun", "scontrol", "rewarm"):
        answer(command, status=75 if command == "srun" else 0)
    folder = tmp_path / "a b's 100%"
    folder.mkdir()
    (folder / "arms.txt").write_text("name=a seed=1\nname=b seed=2\n")
    commands = (f"{tmp_path}/bin/rewarm", "rewarm train")
    script = script_of_study(Path("/x y/r.yaml"), folder / "arms.txt", 2, folder, commands, Resources(1, 4))
    assert f"#SBATCH --job-name={shlex.quote(folder.name)}\n#SBATCH --array=1-2\n" in script
    assert "100%%/job-%A-%a.log" in script
    (tmp_path / "arms.sbatch").write_text(script)
    slurm = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": task, "SLURM_NTASKS": "4"}
    done = subprocess.run(
        ["bash", str(tmp_path / "arms.sbatch")],
        env=os.environ | slurm,
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    called = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert called == [] if arm is None else called == [
        f"plan /x y/r.yaml {arm} --gpus 4 --strict",
        f"--kill-on-bad-exit=1 rewarm train /x y/r.yaml {arm}",
        f"requeue 7_{task}",
    ]  # fmt: skip
    assert ("has no line 3" in done.stderr) == (arm is None)
