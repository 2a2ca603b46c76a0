"""Killed at any moment, again and again, a run ends as if nothing had been: to the bit."""

import signal

import pytest

from tests.helpers import crashes, runs

pytestmark = pytest.mark.slow

STEPS = 48
SEED = 14


@pytest.fixture
def environment(monkeypatch):
    """What forked ranks inherit."""
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{runs.ROOT}:{runs.ROOT / 'tests'}")


def test_ten_kills_leave_no_trace(data, tmp_path, environment):
    for name in ("undisturbed", "tormented"):
        tree = runs.long_recipe(data, tmp_path / name, STEPS)
        runs.write(tree, tmp_path / f"{name}.yaml")
    log = tmp_path / "log"
    assert crashes.Started(tmp_path / "undisturbed.yaml", None, log).end() == [0, 0], log.read_text()
    kills = crashes.plan(10, STEPS, SEED, launched=2)
    assert {kill.ranks for kill in kills} == {"one", "all"}
    assert {"save", "step"} <= {kill.moment for kill in kills}
    told = []
    struck = crashes.torment(tmp_path / "tormented.yaml", tmp_path / "tormented", kills, log, told.append)
    print("\n".join(told))
    assert struck == len(kills)
    assert any("saving" in line for line in told), told
    assert crashes.differences(tmp_path / "undisturbed", tmp_path / "tormented") == []
    assert "restore" in crashes.starts(tmp_path / "tormented")


def test_signals_at_any_moment_leave_no_trace_in_what_is_learnt(data, tmp_path, environment):
    for name in ("undisturbed", "disturbed"):
        tree = runs.long_recipe(data, tmp_path / name, 24)
        runs.write(tree, tmp_path / f"{name}.yaml")
    log = tmp_path / "log"
    assert crashes.Started(tmp_path / "undisturbed.yaml", None, log).end() == [0, 0], log.read_text()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    sent = crashes.plan(6, 24, SEED, launched=1, numbers=numbers)
    assert {one.moment for one in sent} == {"start", "step", "save"}
    told = []
    crashes.torment(tmp_path / "disturbed.yaml", tmp_path / "disturbed", sent, log, told.append)
    print("\n".join(told))
    left, right = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert without_scores(runs.trace(left)) == without_scores(runs.trace(right))
    assert not [line for line in crashes.differences(left, right) if "histories" not in line]
    assert "Traceback" not in log.read_text()


def test_flipped_bytes_are_found_at_the_start_and_the_one_before_is_used(data, tmp_path, environment):
    tree = runs.long_recipe(data, tmp_path / "run", 18)
    recipe = runs.write(tree, tmp_path / "recipe.yaml")
    begun = runs.write({**tree, "stop_after": 12 * 256}, tmp_path / "begun.yaml")
    log = tmp_path / "log"
    assert crashes.Started(begun, None, log).end() == [0, 0], log.read_text()
    expected = runs.trace(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000009", "step-00000012"]

    flip(folder / "step-00000012" / "rank-00001.safetensors")
    assert crashes.Started(recipe, None, log).end() == [0, 0], log.read_text()
    told = log.read_text()
    assert f"{folder / 'step-00000012' / 'rank-00001.safetensors'}: has checksum" in told
    assert "this checkpoint is passed over" in told
    assert "renamed to damaged-step-00000012" in told
    assert crashes.starts(tmp_path / "run") == ["start", "restore"]
    assert [record["step"] for record in runs.trace(tmp_path / "run")] == list(range(19))
    assert without_scores(runs.trace(tmp_path / "run")[:13]) == without_scores(expected)

    (folder / "step-00000018" / "COMMITTED").unlink()
    flip(folder / "step-00000015" / "rank-00000.safetensors")
    assert crashes.Started(recipe, None, log).end() == [2, 2]
    assert "no checkpoint is good" in log.read_text()
    assert crashes.starts(tmp_path / "run") == ["start", "restore"]


def without_scores(trace):
    """Where a run was stopped it is scored once more than where it went on."""
    return [{name: record[name] for name in record if not name.startswith("eval/")} for record in trace]


def flip(file):
    """Changes one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_wrong_recipe_is_told_though_the_first_rank_sees_it_last(data, tmp_path):
    late = tmp_path / "late.py"
    late.write_text(
        "import os, runpy, time\n"
        "time.sleep(4 * (os.environ['RANK'] == '0'))\n"
        f"runpy.run_path({str(runs.SCRIPT)!r}, run_name='__main__')\n"
    )
    recipe = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "r.yaml")
    done = runs.launch(recipe, 2, "seq_len=0", script=late)
    assert done.returncode == 2
    (told,) = (line for line in done.stderr.splitlines() if line.startswith("rewarm: "))
    assert "seq_len" in told
