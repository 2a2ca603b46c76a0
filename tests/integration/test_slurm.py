"""The batch script under a real Slurm: warned, preempted, requeued, and in the end never interrupted."""

import json

import pytest

from tests.helpers import cluster, runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(cluster.missing()), reason=f"not installed: {', '.join(cluster.missing())}"),
    pytest.mark.skipif(
        not (runs.ROOT / ".venv/bin/rewarm").exists(), reason="not set up: the scripts run .venv"
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("slurm")) as toy:
        yield toy


def test_a_job_that_is_warned_and_then_preempted_is_the_undisturbed_run(slurm, data, tmp_path):
    undisturbed = runs.write(runs.long_recipe(data, tmp_path / "undisturbed", 300), tmp_path / "a.yaml")
    assert runs.launch(undisturbed, 2).returncode == 0

    run = tmp_path / "requeued"
    recipe = runs.write(runs.long_recipe(data, run, 300), tmp_path / "b.yaml")
    job = slurm.submit("launch/slurm/train.sbatch", str(recipe))
    slurm.wait_for(lambda: runs.last_step(run) >= 40, 240)
    slurm.ask("scancel", "--signal=USR1", job)  # what --signal does before the time limit
    slurm.wait_for(lambda: "requeueing" in slurm.log(job) and slurm.state(job) == "PENDING", 60)
    warned = runs.last_step(run)
    assert warned < 300

    slurm.start_now(job)
    slurm.wait_for(lambda: runs.last_step(run) >= warned + 40, 240)
    slurm.submit("--partition=high", "--exclusive", "--wrap=sleep 1")
    slurm.wait_for(lambda: slurm.state(job) == "PENDING", 60)
    preempted = runs.last_step(run)
    assert warned < preempted < 300
    assert (run / "checkpoints" / f"step-{preempted:08d}" / "COMMITTED").exists(), "saved, not killed"

    slurm.start_now(job)
    slurm.wait_for(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), 240)
    assert slurm.state(job) == "COMPLETED", slurm.log(job)[-3000:]
    assert runs.trace(run) == runs.trace(tmp_path / "undisturbed")
    kinds = [json.loads(line)["kind"] for line in (run / "lineage.jsonl").open()]
    assert kinds == ["start", "restore", "restore"]


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
