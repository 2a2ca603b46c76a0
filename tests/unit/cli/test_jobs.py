"""`rewarm submit` and `rewarm status` as a user calls them."""

import json
import time
from types import SimpleNamespace

import pytest

from tests.helpers import runs
from trainer.cli import jobs
from trainer.cli.main import main
from trainer.metrics.heartbeat import queued_status, write_status


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


def test_a_dry_run_prints_the_script_and_changes_nothing(data, tmp_path, capsys):
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "r.yaml")
    size = ["--nodes", "2", "--gpus-per-node", "2", "--partition", "gpu", "--sbatch=--time=8:00:00"]
    assert main(["submit", str(file), *size, "--dry-run", "seed=5", f"run_dir={tmp_path}/other"]) == 0
    out, err = capsys.readouterr()
    for line in ("--nodes=2", "--ntasks-per-node=2", "--partition=gpu", "--time=8:00:00"):
        assert f"#SBATCH {line}\n" in out
    assert f"set -- {tmp_path}/other/recipe.resolved.yaml\n" in out
    assert f"{runs.SCRIPT}" in out, "the code is that of the command, whatever the job's folder is"
    assert "decided  start" in err
    assert not (tmp_path / "other").exists()


def test_a_mistake_in_the_recipe_submits_nothing(data, tmp_path, capsys):
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "r.yaml")
    assert main(["submit", str(file), "--nodes", "3", "--gpus-per-node", "1"]) == 2
    assert "does not divide evenly among 3 ranks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run(tmp_path):
    """A run that waits in a queue that cannot be asked."""
    write_status(tmp_path, queued_status(tmp_path) | {"job": "7"})
    return str(tmp_path)


def test_the_status_as_a_table_and_as_json(run, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["status", run]) == 0
    assert "job 7: squeue cannot be asked here" in capsys.readouterr().out
    assert main(["status", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "queued"
    assert main(["status", f"{run}/nowhere"]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_the_table_is_shown_again_until_ctrl_c(run, monkeypatch, capsys):
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=sleep, strftime=time.strftime))
    assert main(["status", run, "--watch"]) == 0
    assert waited == [10, 10, 10]
    assert capsys.readouterr().out.count("queued") == 3
