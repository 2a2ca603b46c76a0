"""Jobs under a real Slurm: whatever ends one, it comes back, and in the end it was never interrupted."""

import json
import subprocess

import pytest

from tests.helpers import cluster, crashes, runs
from tests.helpers.ranks import saved_steps

REWARM = runs.ROOT / ".venv/bin/rewarm"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(cluster.missing()), reason=f"not installed: {', '.join(cluster.missing())}"),
    pytest.mark.skipif(not REWARM.exists(), reason="not set up: the scripts run .venv"),
]

STEPS = 240


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("slurm")) as toy:
        yield toy


def write(data, run, every=3):
    """The recipe of a run that is saved every so many steps."""
    tree = runs.long_recipe(data, run, STEPS)
    tree["checkpoint"]["every_tokens"] = every * 8 * 32
    tree["validation"]["every_tokens"] = 60 * 8 * 32
    return runs.write(tree, run.with_suffix(".yaml"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The run directory of a run that nothing interrupts."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = runs.launch(write(data, run, every=STEPS), 2, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return run


def rewarm(slurm, *words):
    return subprocess.run(
        [REWARM, *words], env=slurm.environment, cwd=runs.ROOT, capture_output=True, text=True, timeout=400
    )


def shown(slurm, run):
    """What `rewarm status` says of a run."""
    (status,) = json.loads(rewarm(slurm, "status", str(run), "--json").stdout)
    return status


def finish(slurm, job, run, undisturbed):
    """Wait for the end of a job; its run is the undisturbed one, to the bit."""
    slurm.wait_for_job(job, lambda: slurm.state(job) == "COMPLETED")
    assert crashes.differences(undisturbed, run) == []
    assert set(crashes.starts(run)[1:]) == {"restore"}


def test_a_submitted_run_comes_back_from_its_time_limit_a_requeue_and_a_lost_node(
    slurm, data, tmp_path, undisturbed
):
    run = tmp_path / "run"
    size = ("--nodes=2", "--gpus-per-node=0", "--partition=low", "--sbatch=--cpus-per-task=1")
    warned = ("--sbatch=--time=1", "--sbatch=--signal=USR1@5")
    with slurm.slow_disk(0.1):
        done = rewarm(slurm, "submit", str(write(data, run)), *size, *warned, "--json")
        assert done.returncode == 0, done.stderr
        job = json.loads(done.stdout)["job"]
        again = rewarm(slurm, "submit", str(write(data, run)), *size)
        assert again.returncode == 2
        assert f"is trained by job {job} already" in again.stderr

        slurm.wait_for_job(job, lambda: slurm.restarts(job) == 1)
        assert "requeueing job" in (run / "logs" / f"job-{job}.log").read_text()
        slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
        limited = runs.last_step(run)
        assert saved_steps(run)[-1:] == [limited] * (limited > 0), "saved, not killed"
        slurm.start_now(job)

        slurm.wait_for_job(job, lambda: runs.last_step(run) >= limited + 5)
        status = shown(slurm, run)
        assert (status["state"] in ("running", "saving"), status["job"]) == (True, job)
        slurm.ask("scontrol", "requeue", job)
        slurm.wait_for_job(job, lambda: slurm.state(job) == "PENDING")
        requeued = runs.last_step(run)
        assert saved_steps(run)[-1] == requeued, "saved, not killed"
        assert shown(slurm, run)["state"] == "queued"
        slurm.start_now(job)

        slurm.wait_for_job(job, lambda: runs.last_step(run) >= requeued + 5)
        slurm.lose_node("n1")
        slurm.wait_for_job(job, lambda: slurm.state(job) == "PENDING")
        slurm.start_node("n1")  # Slurm still tells it to end the job, so that this start has to wait its time
    finish(slurm, job, run, undisturbed)
    assert shown(slurm, run)["state"] == "finished"
    record = json.loads((run / "submission.json").read_text())
    assert (record["job"], record["world_size"]) == (job, 2)


def test_ten_preemptions_in_a_row_leave_no_trace(slurm, data, tmp_path, undisturbed):
    """Every other one strikes while the job still loads."""
    run = tmp_path / "run"
    with slurm.slow_disk(0.1):
        job = slurm.submit("launch/slurm/train.sbatch", str(write(data, run)))
        before = 0
        for number in range(10):
            slurm.wait_for_job(job, lambda: slurm.state(job) == "RUNNING")
            if number % 2 == 0:
                slurm.wait_for_job(job, lambda known=before: runs.last_step(run) > known)
            slurm.submit("--partition=high", "--exclusive", "--wrap=sleep 1")
            slurm.wait_for_job(job, lambda: slurm.state(job) == "PENDING")
            before = runs.last_step(run)
            assert saved_steps(run)[-1:] == [before] * (before > 0), "saved, not killed"
            slurm.start_now(job)
    finish(slurm, job, run, undisturbed)
    assert slurm.restarts(job) == 10


def test_parts_of_a_corpus_as_an_array(slurm, data, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(runs.text("en", 200, 7)), encoding="utf-8")
    arguments = ["--input", str(text), "--tokenizer", str(data / "tokenizer"), "--documents", "blocks"]
    job = slurm.submit(
        "--array=1-2", "--nodes=1", "launch/slurm/prepare.sbatch", *arguments, "--out", str(tmp_path / "en")
    )
    slurm.wait_for(lambda: not slurm.ask("squeue", "-h", "-j", job), 120)
    from tokenization.shards.store import open_tokens, verify_shard

    verify_shard(tmp_path / "en")
    assert open_tokens(tmp_path / "en").documents == 200


def test_a_wrong_recipe_fails_at_once_and_is_not_requeued(slurm, data, tmp_path):
    recipe = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "r.yaml")
    job = slurm.submit("launch/slurm/train.sbatch", str(recipe), "seq_len=0")
    slurm.wait_for(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), 120)
    assert slurm.state(job) == "FAILED"
    assert "seq_len" in slurm.log(job)
    assert "requeueing" not in slurm.log(job)
    assert "Traceback" not in slurm.log(job)
