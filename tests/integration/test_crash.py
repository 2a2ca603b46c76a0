"""Killed at any moment, again and again, a run ends as if nothing had been: to the bit."""

import crashes
import pytest
import runs

pytestmark = pytest.mark.slow

STEPS = 40
SEED = 6


@pytest.fixture
def environment(monkeypatch):
    """What forked ranks inherit."""
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{runs.ROOT}:{runs.ROOT / 'tests'}")


def test_eight_kills_leave_no_trace(data, tmp_path, environment):
    for name in ("undisturbed", "tormented"):
        tree = runs.long_recipe(data, tmp_path / name, STEPS)
        runs.write(tree, tmp_path / f"{name}.yaml")
    log = tmp_path / "log"
    assert crashes.Started(tmp_path / "undisturbed.yaml", None, log).end() == [0, 0], log.read_text()
    kills = crashes.plan(8, STEPS, SEED, launched=2)
    assert {kill.ranks for kill in kills} == {"one", "all"}
    assert {"save", "step"} <= {kill.moment for kill in kills}
    told = []
    struck = crashes.torment(tmp_path / "tormented.yaml", tmp_path / "tormented", kills, log, told.append)
    print("\n".join(told))
    assert struck == len(kills)
    assert sum("saving" in line for line in told) >= 2
    assert crashes.differences(tmp_path / "undisturbed", tmp_path / "tormented") == []
    assert "restore" in crashes.starts(tmp_path / "tormented")
