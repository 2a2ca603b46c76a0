"""A study as a user runs it: its arms under the launcher, a page, and nothing done twice."""

import json
import subprocess

import pytest

from tests.helpers import runs
from trainer.study import series

pytestmark = pytest.mark.slow


def study(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["rewarm", "study", *words]
    return subprocess.run(
        command, env=runs.environment(), capture_output=True, text=True, timeout=400, check=False
    )


def test_arms_are_trained_once_and_the_page_compares_them(data, tmp_path, monkeypatch, log_lines):
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    tree = runs.recipe(data, tmp_path / "unused")
    tree["phases"][0]["tokens"] = 4 * 8 * 32
    recipe, out = runs.write(tree, tmp_path / "r.yaml"), tmp_path / "study"
    arms = ["constant", "max-lr-half", "max-lr-same", "max-lr-twice"]

    def both_ends() -> list[series.ArmRun]:
        trials = series.plan_arms("max_lr", recipe, out, ["seed=3"], 2)
        assert [trial.name for trial in trials] == arms
        return [trials[0], trials[-1]]

    assert series.train_arms(both_ends(), recipe, 2) == 0
    low, high = (max(r["lr"] for r in runs.trace(out / name) if r["step"]) for name in (arms[0], arms[-1]))
    assert high == pytest.approx(20 * low)
    assert not any("is finished" in line for line in log_lines)
    before = [path.read_bytes() for path in sorted(out.glob("*/metrics.jsonl"))]

    again = both_ends()
    assert series.train_arms(again, recipe, 2) == 0
    assert [line for line in log_lines if line.endswith("is finished")] == log_lines[-2:]
    assert [path.read_bytes() for path in sorted(out.glob("*/metrics.jsonl"))] == before
    told = series.conclude("max_lr", again, out)
    assert "How far should the learning rate be re-warmed?" in told
    assert all(
        name in text for name in (arms[0], arms[-1]) for text in (told, (out / "report.html").read_text())
    )
    assert not (tmp_path / "unused").exists()


def test_arms_for_a_batch_system(data, tmp_path):
    recipe, out = runs.write(runs.recipe(data, tmp_path / "unused"), tmp_path / "r.yaml"), tmp_path / "study"
    done = study(
        "warmup", "--recipe", str(recipe), "--out", str(out), "--nproc", "2", "--arms-only", "--json"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    lines = (out / "arms.txt").read_text().splitlines()
    assert told["arms"] == str(out / "arms.txt")
    assert [f"run_dir={run}" in line for run, line in zip(told["runs"], lines, strict=True)] == [True] * 5
    assert sorted(path.name for path in out.iterdir()) == ["arms.txt"]


def test_all_arms_are_found_wrong_before_one_is_trained(data, tmp_path):
    recipe, out = runs.write(runs.recipe(data, tmp_path / "unused"), tmp_path / "r.yaml"), tmp_path / "study"
    done = study("replay", "--recipe", str(recipe), "--out", str(out), "phases.0.tokens=1e9")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("rewarm: arm replay-")]
    assert len(lines) >= 6
    assert not out.exists()
