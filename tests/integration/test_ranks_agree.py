"""Ranks that are not of one run end before the first step, all of them, and say what differs."""

import json
import os
import shutil
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


def start(
    file: Path, *overrides: list[str], folders: list[Path] | None = None, odd_script: Path = runs.SCRIPT
):
    """Starts one rank for each list of overrides, with torch's names; their exit codes and what they said.

    The last rank is started by `odd_script`.
    """
    scripts = [runs.SCRIPT] * (len(overrides) - 1) + [odd_script]
    world = {"WORLD_SIZE": str(len(overrides)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(scripts[rank]), str(file), *own],
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


FAULTS = {
    "wrong all-reduce": (
        "import torch.distributed as dist\n"
        "reduce = dist.all_reduce\n"
        "def all_reduce(values, *args, **options):\n"
        "    reduce(values, *args, **options)\n"
        "    if len(values) > 1000:\n"
        "        values[777] += 1\n"
        "dist.all_reduce = all_reduce\n",
        75,
        "an all-reduce of known numbers comes back wrong on rank 1 (host ",
    ),
    "clock": (
        "import time\nclock = time.time\ntime.time = lambda: clock() + 90\n",
        2,
        "+90.0 s from the median of all",
    ),
}
"""What one rank does first, with what exit status all end, and what they say."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_machine_is_named_before_weights_are_loaded(data, tmp_path, fault):
    first, status, line = FAULTS[fault]
    faulty = tmp_path / "faulty.py"
    faulty.write_text(f"import runpy\n{first}runpy.run_path({str(runs.SCRIPT)!r}, run_name='__main__')\n")
    run = tmp_path / "run"
    file = runs.write(runs.recipe(data, run), tmp_path / "recipe.yaml")
    codes, told = start(file, [], [], odd_script=faulty)
    assert codes == [status, status], told
    for text in told:
        assert line in text
        assert "rank 1 (host " in text
        assert "Traceback" not in text
    assert not (run / "metrics.jsonl").exists()
    assert line in json.loads((run / "status.json").read_text())["message"]


def test_a_rank_with_other_code_is_named(data, tmp_path):
    for package in ("trainer", "tokenization", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(runs.ROOT / package, tmp_path / "clone" / package, ignore=ignored)
    with (tmp_path / "clone" / "trainer" / "run" / "loop.py").open("a") as file:
        file.write("# an edit on one node\n")
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "recipe.yaml")
    codes, told = start(file, [], [], odd_script=tmp_path / "clone" / "launch" / "train.py")
    assert codes == [2, 2], told
    for text in told:
        assert "ranks differ: versions.code is " in text
        assert "on rank 1 (host " in text


def test_ranks_that_agree_train(data, tmp_path):
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "recipe.yaml")
    codes, told = start(file, ["stop_after=512"], ["stop_after=512"])
    assert codes == [0, 0], told
    assert runs.last_step(tmp_path / "run") == 2
    left = os.listdir(tmp_path / "run")
    assert "identity.json" in left
    for rank in (0, 1):
        kept = (tmp_path / "run" / "logs" / f"rank-{rank:04d}.log").read_text()
        assert "all-reduce of 4 MiB is right on every rank" in kept, "each rank keeps its lines"
    assert "preflight" in told[0]
    assert "preflight" not in told[1], "rank 0 speaks for all"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 2)
    assert "stop_after 512 ended the run" in status["message"]
    assert not any(name.startswith(".shared-") for name in left)
