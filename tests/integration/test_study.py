"""A study as a user runs it: its arms under the launcher, a page, and nothing done twice."""

import json
import subprocess

import pytest
import runs

pytestmark = pytest.mark.slow


def study(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["rewarm", "study", *words]
    return subprocess.run(
        command, env=runs.environment(), capture_output=True, text=True, timeout=400, check=False
    )


def test_the_arms_are_trained_once_and_the_page_compares_them(data, tmp_path):
    tree = runs.recipe(data, tmp_path / "unused")
    tree["phases"][0]["tokens"] = 4 * 8 * 32
    recipe, out = runs.write(tree, tmp_path / "r.yaml"), tmp_path / "study"
    words = ("max_lr", "--recipe", str(recipe), "--out", str(out), "--nproc", "2", "--json", "seed=3")
    first = study(*words)
    assert first.returncode == 0, first.stderr[-3000:]
    told = json.loads(first.stdout)
    names = ["constant", "max-lr-half", "max-lr-same", "max-lr-twice"]
    assert told["runs"] == [str(out / name) for name in names]
    highest = {
        name: max(record["lr"] for record in runs.trace(out / name) if record["step"]) for name in names
    }
    assert highest["constant"] < highest["max-lr-half"] < highest["max-lr-same"] < highest["max-lr-twice"]
    assert all(name in (out / "report.html").read_text() for name in names)
    assert not (tmp_path / "unused").exists()

    before = {name: (out / name / "metrics.jsonl").read_bytes() for name in names}
    second = study(*words)
    assert second.returncode == 0
    assert second.stderr.count("is finished") == 4
    assert {name: (out / name / "metrics.jsonl").read_bytes() for name in names} == before


def test_all_arms_are_found_wrong_before_one_is_trained(data, tmp_path):
    recipe, out = runs.write(runs.recipe(data, tmp_path / "unused"), tmp_path / "r.yaml"), tmp_path / "study"
    done = study("replay", "--recipe", str(recipe), "--out", str(out), "phases.0.tokens=1e9")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("rewarm: arm replay-")]
    assert len(lines) >= 6
    assert not out.exists()
