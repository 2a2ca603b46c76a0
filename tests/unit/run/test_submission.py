"""`rewarm submit`: planned before it is submitted, written whole, and not twice."""

import json
import subprocess

import pytest
import yaml

from tests.helpers import runs
from tokenization.errors import ExitCode, UserError, UserErrors
from trainer.machine.slurm import QueuedJob, Resources
from trainer.metrics.heartbeat import read_status, write_status
from trainer.recipe.load import load_recipe
from trainer.run import submission
from trainer.run.submission import code_commit, make_submission, submit_run

COMMANDS = ("/bin/rewarm", "/bin/python train.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def slurm(monkeypatch):
    """Slurm's queue, and what was submitted; `refuse` makes sbatch fail."""

    class Slurm:
        def __init__(self):
            self.queue, self.submitted, self.refuse = {}, [], False

        def sbatch(self, script):
            if self.refuse:
                raise UserError("Slurm refuses the job: invalid partition")
            self.submitted.append(read_status(script.parent)["state"])
            return "42"

    slurm = Slurm()
    monkeypatch.setattr(submission, "submit_script", slurm.sbatch)
    monkeypatch.setattr(
        submission, "queued_jobs", lambda jobs: {job: slurm.queue[job] for job in jobs if job in slurm.queue}
    )
    return slurm


@pytest.fixture
def make(data, tmp_path):
    """A submission of a run in `tmp_path/run`, with changes of its recipe."""

    def make(nodes=2, **changes):
        file = runs.write(runs.recipe(data, tmp_path / "run", **changes), tmp_path / "r.yaml")
        return make_submission(load_recipe(file), Resources(nodes, 2), COMMANDS, ["submit", str(file)])

    return make


def test_script_recipe_and_code_are_in_the_run_directory(make, slurm, tmp_path):
    made, run = make(), tmp_path / "run"
    assert not run.exists(), "a plan changes nothing"
    assert submit_run(made) == "42"
    assert slurm.submitted == ["queued"], "the job may start before sbatch has answered"
    assert (run / "job.sbatch").read_text() == made.script
    assert f"set -- {run}/recipe.resolved.yaml\n" in made.script
    assert f"#SBATCH --output={run}/logs/job-%j.log\n" in made.script
    assert (run / "logs").is_dir()
    assert yaml.safe_load((run / "recipe.resolved.yaml").read_text())["seq_len"] == 32
    record = json.loads((run / "submission.json").read_text())
    assert (record["job"], record["world_size"]) == ("42", 4)
    assert record["resources"] == {"nodes": 2, "gpus_per_node": 2, "partition": None, "more": []}
    assert record["command"] == f"rewarm submit {tmp_path}/r.yaml"
    assert read_status(run)["state"] == "queued"
    assert make().exit_code is None, "what was written is that run, so that its start is not refused"


def test_what_is_wrong_with_the_recipe_is_told_for_the_ranks_that_it_will_have(make, tmp_path):
    with pytest.raises(UserErrors, match="does not divide evenly among 6 ranks"):
        make(nodes=3)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_in_the_queue_is_not_submitted_again(make, slurm):
    submit_run(make())
    slurm.queue["42"] = QueuedJob("PENDING", "Priority", "")
    with pytest.raises(UserError, match=r"is trained by job 42 already, which is PENDING; .*scancel 42"):
        submit_run(make())
    del slurm.queue["42"]
    submit_run(make())
    assert len(slurm.submitted) == 2


@pytest.mark.parametrize("before", ["stopped", None])
def test_a_job_that_slurm_refuses_leaves_the_status_as_it_was(make, slurm, tmp_path, before):
    run = tmp_path / "run"
    if before:
        submit_run(make())
        write_status(run, {**read_status(run), "state": before})
    slurm.refuse = True
    with pytest.raises(UserError, match="invalid partition"):
        submit_run(make())
    assert read_status(run).get("state") == before


def test_a_refused_start_is_not_submitted(make, monkeypatch):
    real = submission.make_plan

    def refused(*args):
        plan = real(*args)
        object.__setattr__(plan.decision, "kind", "refuse")
        return plan

    monkeypatch.setattr(submission, "make_plan", refused)
    assert make().exit_code == ExitCode.USER


def test_the_commit_is_that_of_this_code(monkeypatch, tmp_path):
    found = code_commit()
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=runs.ROOT, capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert found["commit"] == head.stdout.strip()
    monkeypatch.setattr(submission.trainer, "__file__", str(tmp_path / "trainer" / "__init__.py"))
    assert code_commit() == {"commit": None, "modified": None}
