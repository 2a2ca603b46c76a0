"""benchmarks/gpu.sh: a step that hangs is ended, and what was found until then is left."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import driver
from benchmarks.gpu.driver import Step

ROOT = Path(__file__).resolve().parents[2]

STEPS = {
    "ground": """
row("card", value="no card")
table = asked.out / "table.md"
while "no card" not in table.read_text():  # each row is on the disk while its step still runs
    time.sleep(0.01)
row("card is in the table", ok=True)
""",
    "hangs": """
row("before it hangs", ok=True)
lock = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "some_op" / "lock"
lock.parent.mkdir()
lock.touch()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
row("child", value=child.pid)
time.sleep(600)
""",
    "breaks": """
row("before it breaks", ok=True)
print("nothing but rows goes to the standard output")
raise RuntimeError("the reason")
""",
    "without": 'row("card", ok=False, note="torch finds no card")',
    "last": """
row("builds go on", ok=not list(Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("*/lock")))
row("scratch", value=os.environ["TMPDIR"])
row("infinite", value=float("inf"))
with trial("a trial"):
    raise ValueError("of no use")
""",
}
HEAD = """
import os, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu.rows import options, row, trial
asked = options()
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs steps of the names given; whether all is right, and the rows by name."""
    steps, out, extensions = tmp_path / "steps" / "fakes", tmp_path / "out", tmp_path / "extensions"
    for folder in (steps, out, extensions):
        folder.mkdir(parents=True)
    (steps / "__init__.py").touch()
    for name, body in STEPS.items():
        (steps / f"{name}.py").write_text(HEAD + body)
    monkeypatch.setenv("PYTHONPATH", str(steps.parent))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))

    def run(*names: str, seconds: float = 120):
        plan = [Step(name, f"Part {name}", 0.02 if name == "hangs" else 1.0) for name in names]
        right = driver.Run(out, seconds / 60, cpu=True, package="fakes").all(plan)
        lines = (out / "results.jsonl").read_text().splitlines()
        return right, {row["name"]: row for row in map(json.loads, lines)}, (out / "table.md").read_text()

    return run


def alive(pid: int) -> bool:
    """Whether a process still runs (one that is dead and not yet collected does not)."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_step_that_hangs_is_ended_with_its_children_and_the_rest_is_run(run, capsys):
    begin = time.monotonic()
    right, rows, table = run("ground", "hangs", "last", seconds=400)
    assert not right
    assert time.monotonic() - begin < 100  # and not the 600 s that the step would take
    assert rows["before it hangs"]["ok"] is True
    assert rows["time limit"]["ok"] is False
    assert not alive(rows["child"]["value"])
    assert rows["builds go on"]["ok"] is True
    assert not Path(rows["scratch"]["value"]).exists()
    for text in ("Part hangs", "before it hangs", "time limit", "builds go on"):
        assert text in table
    assert "NOT OK  time limit" in capsys.readouterr().out


def test_rows_are_on_the_disk_while_their_step_runs(run):
    right, rows, table = run("ground")
    assert right
    assert rows["card is in the table"]["ok"] is True
    assert re.match(r"\*\*no card\*\*, commit \w+", table)


def test_a_step_that_breaks_says_why_and_its_rows_stay(run, tmp_path, capsys):
    right, rows, _ = run("breaks", "last")
    assert not right
    assert rows["before it breaks"]["ok"] is True
    assert rows["exit status"]["ok"] is False
    assert "RuntimeError: the reason" in capsys.readouterr().out
    log = (tmp_path / "out" / "breaks.log").read_text()
    assert "nothing but rows" in log
    assert "output" not in rows


def test_what_a_trial_raises_is_a_row_and_infinity_stays_json(run, tmp_path):
    right, rows, _ = run("last")
    assert not right
    assert rows["a trial"]["ok"] is False
    assert rows["a trial"]["note"] == "ValueError: of no use"
    assert rows["infinite"]["value"] == "inf"


def test_steps_for_which_no_time_is_left_are_named_and_not_run(run):
    _, rows, table = run("last", seconds=1)
    assert list(rows) == ["not run"]
    assert "the time was over before it" in table


def test_without_a_card_nothing_else_is_tried(run, tmp_path):
    ground = tmp_path / "steps" / "fakes" / "ground.py"
    ground.write_text(HEAD + STEPS["without"])
    right, rows, _ = run("ground", "last")
    assert not right
    assert list(rows) == ["card"]


def test_an_earlier_runs_results_are_kept(tmp_path):
    for name in ("results.jsonl", "table.md", "right.log"):
        (tmp_path / name).write_text(name)
    kept = driver.set_aside(tmp_path)
    assert kept is not None
    assert sorted(path.name for path in kept.iterdir()) == ["results.jsonl", "right.log", "table.md"]
    assert [path for path in tmp_path.iterdir() if path != kept] == []
    assert driver.set_aside(tmp_path) is None


def test_what_is_missing_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    needed = {"json": "json", "no_such_module": "first", "no_such.module": "second"}
    assert driver.lacking(needed) == ["first", "second"]
    monkeypatch.setattr(driver, "lacking", lambda: ["first", "second"])
    assert driver.main(["--out", str(tmp_path / "out"), "--cpu"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "first, second" in told[0]
    assert "benchmarks/gpu_wheels.sh DIR --python 3." in told[0]
    assert not (tmp_path / "out").exists()


def test_the_wheels_are_pinned_and_cover_what_the_steps_need():
    script = (ROOT / "benchmarks" / "gpu_wheels.sh").read_text()
    found = re.search(r"packages=\((.*?)\)", script, re.DOTALL)
    assert found
    wheels = {name.replace("_", "-") for name in [*found[1].split(), "deepspeed"]}
    lock = (ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    assert all(f"\n{name}==" in lock for name in wheels)
    # what comes with torch, transformers and accelerate, or is on any machine that has them
    with_torch = {"torch", "numpy", "transformers", "accelerate", "safetensors", "pyyaml", "tqdm"}
    of_science = {"protobuf", "pyarrow", "typer"}
    assert set(driver.NEEDED.values()) - wheels <= with_torch | of_science


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a folder"),
        (["--python", "3.12"], "name a folder"),
        (["wheels", "--python"], "--python needs a version"),
        (["wheels", "--python", "new"], "--python new is not a version"),
        (["wheels", "--pyhton", "3.12"], "--pyhton is not an option"),
    ],
)
def test_wrong_options_of_the_wheels_script_are_told_in_one_line(tmp_path, arguments, told):
    command = ["bash", str(ROOT / "benchmarks" / "gpu_wheels.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []
