"""Ranks that are not of one run end before the first step, all of them, and say what differs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import runs
from trainer.machine.ranks import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


def start(file: Path, *overrides: list[str], folders: list[Path] | None = None):
    """Starts one rank for each list of overrides, with torch's names; their exit codes and what they said."""
    world = {"WORLD_SIZE": str(len(overrides)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(runs.SCRIPT), str(file), *own],
            env={**runs.environment(), **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folders[rank] if folders else None,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank, own in enumerate(overrides)
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[1] for process in ranks]
    return [process.returncode for process in ranks], told


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("phases.0.schedule.max_lr=1e-3", "recipe.phases.0.schedule.max_lr"),
        ("phases.0.tokens=1024", "recipe.phases.0.tokens"),
        ("validation.upstream={data}/zh-val", "validation.upstream.fingerprint"),
    ],
)
def test_ranks_that_differ_train_nothing(data, tmp_path, override, field):
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "recipe.yaml")
    codes, told = start(file, [], [override.format(data=data)])
    assert codes == [2, 2], told
    for text in told:
        assert f"ranks differ: {field}" in text
        assert "on rank 1 (host " in text
        assert "Traceback" not in text
    assert runs.last_step(tmp_path / "run") == 0


def test_a_run_directory_on_each_nodes_own_disk_is_noticed_before_the_first_step(data, tmp_path):
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    file = runs.write(runs.recipe(data, Path("run")), tmp_path / "recipe.yaml")
    codes, told = start(file, [], [], folders=folders)
    assert codes == [2, 2], told
    assert all("run_dir: 'run' is another directory on rank 1" in text for text in told)
    assert not any((folder / "run" / "metrics.jsonl").exists() for folder in folders)


def test_ranks_that_agree_train(data, tmp_path):
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "recipe.yaml")
    codes, told = start(file, ["stop_after=512"], ["stop_after=512"])
    assert codes == [0, 0], told
    assert runs.last_step(tmp_path / "run") == 2
    left = os.listdir(tmp_path / "run")
    assert "identity.json" in left
    assert not any(name.startswith(".shared-") for name in left)
