"""`bash benchmarks/gpu.sh --cpu`: the script that proves a card runs whole without one, on toy sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.driver import PLAN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 20
"""A limit and not a duration: on two idle cores it takes one and a half."""

MOST_FILES = 8
"""What a machine that is lent for minutes gives back."""

PROVED = {
    "right": [
        *(f"fp32, ZeRO-{stage} against a plain loop" for stage in (0, 1, 2, 3)),
        "frozen embeddings, ZeRO-2",
        "frozen embeddings, ZeRO-3",
        "train: new_rows, fp32, ZeRO-0",
        "train: new_rows, bf16, ZeRO-2",
        "train: new_rows, fp32, ZeRO-3",
        "loss in chunks against whole logits",
        *(f"document mask, {one}" for one in ("eager, fp32", "sdpa, fp32", "eager, bf16", "sdpa, bf16")),
    ],
    "saved": [
        "fp32, zero1: equal to an undisturbed run after kill -9",
        "fp32, zero1: a checkpoint of the card resumes on the CPU",
        "fp32, zero1: a checkpoint of the CPU resumes on the card",
        "the export's logits are the trained model's",
    ],
}
MEASURED = {
    "ground": ["bf16 matmul", "host to device, pinned", "host to device, not pinned"],
    "right": [f"bf16 gradient, ZeRO-2, micro batches: {parts}" for parts in (1, 2, 16)],
    "saved": ["size of a checkpoint", "a save blocks, 1", "peak memory without a save"],
    "fast": ["toy 32k: ours / bare", "toy 55k: ours / bare"],
    "profile": ["a step without the profiler", "the host waits for the card"],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The finished script, and the directory of its results."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--cpu", "--minutes", str(MINUTES)]
    environment = {**os.environ, "PYTHON": sys.executable}
    environment.pop("PYTHONPATH", None)  # the script finds the repository by itself
    ended = subprocess.run(
        [*command, "--out", str(out)],
        cwd=out.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES + 60,
    )
    return ended, out


@pytest.fixture(scope="module")
def rows(done):
    """The rows of results.jsonl by step and name."""
    lines = (done[1] / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {(row["step"], row["name"]): row for row in map(json.loads, lines)}


def test_it_ends_well_and_nothing_is_wrong(done, rows):
    ended, _ = done
    assert [row for row in rows.values() if row["ok"] is False] == []
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_step_leaves_its_rows(rows):
    assert {step for step, _ in rows} == {step.name for step in PLAN}
    assert {step for step, name in rows if name == "not run"} == set()


@pytest.mark.parametrize(("step", "name"), [(step, name) for step in PROVED for name in PROVED[step]])
def test_what_needs_no_card_is_proved(rows, step, name):
    assert rows[step, name]["ok"] is True


@pytest.mark.parametrize(("step", "name"), [(step, name) for step in MEASURED for name in MEASURED[step]])
def test_numbers_are_measured(rows, step, name):
    assert rows[step, name]["value"] is not None


def test_the_table_holds_every_row_and_where_it_comes_from(done, rows):
    table = (done[1] / "table.md").read_text(encoding="utf-8")
    assert table.startswith("**no card**, commit ")
    assert "torch " in table.splitlines()[0]
    for step in PLAN:
        assert f"**{step.title}**" in table
    for _, name in rows:
        assert name.replace("|", "\\|") in table


def test_it_leaves_few_files_and_no_process(done):
    _, out = done
    assert len([path for path in out.rglob("*") if path.is_file()]) <= MOST_FILES
    assert all(path.is_file() for path in out.iterdir())
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(out) not in running
