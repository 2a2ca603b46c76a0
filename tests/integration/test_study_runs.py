"""A study as a user runs it: its arms under the launcher, a page, and nothing done twice."""

import json
import subprocess

import pytest

from tests.helpers import runs
from tokenization.errors import UserError
from trainer.metrics.jsonl import read_attempts
from trainer.study import series
from trainer.study.page import conclude
from trainer.study.series import Request
from trainer.study.spec import Options
from trainer.study.trunk import find_branching

pytestmark = pytest.mark.slow


def study(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["rewarm", "study", *words]
    return subprocess.run(
        command, env=runs.environment(), capture_output=True, text=True, timeout=400, check=False
    )


def test_what_arms_share_is_trained_once_and_nothing_is_trained_again(data, tmp_path, monkeypatch, log_lines):
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    tree = runs.recipe(data, tmp_path / "unused")
    tree["phases"][0]["tokens"] = 8 * 8 * 32
    recipe, out = runs.write(tree, tmp_path / "r.yaml"), tmp_path / "study"
    request = Request("restore", recipe, out, ("seed=3",))

    def two() -> list[series.ArmRun]:
        arms = series.plan_arms(request)
        assert [arm.title for arm in arms] == ["exact", "optimizer-reset", "schedule-restarted", "constant"]
        series.record_arms(request, arms)
        return [arms[0], arms[2]]

    arms = two()
    (out / "exact.partial").mkdir()  # a call that was killed while it copied
    assert series.train_arms(request, arms, at_once=2) == 0
    trunk, exact, restarted = (runs.trace(out / name) for name in ("trunk", "exact", "schedule-restarted"))
    assert [record["step"] for record in exact] == list(range(9))
    assert exact[:5] == restarted[:5] == trunk
    assert [r["data/samples_crc32"] for r in exact[5:]] == [r["data/samples_crc32"] for r in restarted[5:]]
    assert [r["lr"] for r in restarted[5:]] == [r["lr"] for r in exact[1:5]]
    assert exact[-1]["lr"] < exact[-2]["lr"] < exact[4]["lr"]
    starts = [attempt.restored_step for attempt in read_attempts(out / "exact")]
    assert starts == [None, 4]
    before = [path.read_bytes() for path in sorted(out.glob("*/metrics.jsonl"))]

    again = two()
    assert series.train_arms(request, again) == 0
    assert [line for line in log_lines if line.endswith("is finished")] == log_lines[-2:]
    assert [path.read_bytes() for path in sorted(out.glob("*/metrics.jsonl"))] == before
    told = conclude(out)
    assert "What does each wrong resume cost?" in told
    assert (
        "not decided: A resume without the optimizer's moments ends worse; the arm optimizer-reset is" in told
    )
    assert all(arm.title in text for arm in arms for text in (told, (out / "report.html").read_text()))

    leaves, state = find_branching(f"{out / 'trunk'}@1024")
    options = Options(branched=(state.phase, 1024))
    branches = Request(
        "branch", out / "trunk" / "recipe.resolved.yaml", tmp_path / "b", options=options, trunk=leaves
    )
    planned = series.plan_arms(branches)
    assert [runs.last_step(arm.directory) for arm in planned] == [4, 4, 4]
    with pytest.raises(
        UserError, match=r"has no checkpoint at these tokens; it has checkpoints at .*1,024 tokens"
    ):
        find_branching(f"{out / 'trunk'}@1e3")


def test_arms_for_a_batch_system(data, tmp_path):
    recipe, out = runs.write(runs.recipe(data, tmp_path / "unused"), tmp_path / "r.yaml"), tmp_path / "study"
    done = study(
        "warmup", "--recipe", str(recipe), "--out", str(out), "--nproc", "2", "--arms-only", "--json"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["runs"] == [f"{out}/warmup-{share}" for share in ("0", "0.5", "1", "2", "10")]
    lines = (out / "arms.txt").read_text().splitlines()
    assert told["arms"] == str(out / "arms.txt")
    assert [f"run_dir={run}" in line for run, line in zip(told["runs"], lines, strict=True)] == [True] * 5
    assert sorted(path.name for path in out.iterdir()) == ["arms.sbatch", "arms.txt", "study.json"]


def test_all_arms_are_found_wrong_before_one_is_trained(data, tmp_path):
    recipe, out = runs.write(runs.recipe(data, tmp_path / "unused"), tmp_path / "r.yaml"), tmp_path / "study"
    done = study("replay", "--recipe", str(recipe), "--out", str(out), "phases.0.tokens=1e9")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("rewarm: arm replay-")]
    assert len(lines) >= 6
    assert not out.exists()
    done = study("replay", "--recipe", str(recipe), "--out", str(out), "sources.zh.path=nowhere", "seed=1")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "nowhere" in line]
    assert line.startswith("rewarm: 6 arms (replay-0, replay-1, replay-5, …): sources.zh.path: nowhere")
