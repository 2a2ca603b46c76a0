"""The progress of a study: a line per arm, and an estimate of the end."""

import pytest

from tests.helpers import studies
from trainer.metrics.heartbeat import write_status
from trainer.study.progress import TABLE_EVERY_S, ArmProgress, Watch, has_diverged, progress_table, study_eta


def running(done, eta_s):
    return ArmProgress("r", "running", done, eta_s)


WAITING, DONE = ArmProgress("w", "waiting"), ArmProgress("d", "finished", 1.0)


def test_the_end_is_estimated_from_arms_that_ended_else_from_those_that_run():
    assert study_eta([DONE, WAITING, WAITING], 1, arm_s=60.0) == 120.0
    assert study_eta([DONE, WAITING, WAITING], 2, arm_s=60.0) == 60.0
    # half done and 30 s left: an arm takes 60 s
    assert study_eta([running(0.5, 30.0), WAITING], 1, arm_s=None) == 90.0
    assert study_eta([running(0.0, 500.0), WAITING], 2, arm_s=10.0) == 500.0  # never before its longest arm
    assert study_eta([WAITING], 1, arm_s=None) is None
    assert study_eta([DONE, ArmProgress("f", "failed", 0.2)], 1, arm_s=60.0) == 0.0
    half = ArmProgress("s", "stopped", 0.5)
    assert study_eta([half], 1, arm_s=60.0) == 30.0


def test_the_table_has_every_arm_and_what_is_left():
    arms = [ArmProgress("a", "finished", 1.0, None, 2.5, 2.1), running(0.25, 125.0), WAITING]
    lines = progress_table(arms, 600.0).splitlines()
    assert lines[0] == "1 of 3 arms finished, about 10 min to go"
    assert lines[3].split() == ["a", "finished", "100%", "2.5000", "2.1000", "-"]
    assert lines[4].split() == ["r", "running", "25%", "-", "-", "2", "min"]
    assert "to go" not in progress_table([DONE], 0.0)


def test_the_watch_speaks_when_an_arm_ends_and_every_few_minutes(tmp_path, log_lines):
    now = 0.0
    watch = Watch({"a": tmp_path / "a", "b": tmp_path / "b"}, 1, clock=lambda: now)
    watch.started("a")
    now = 40.0
    watch.ended("a")
    assert any("0 of 2 arms finished, about 1 min to go" in line for line in log_lines)
    before = len(log_lines)
    now += TABLE_EVERY_S - 1
    watch.beat()
    assert len(log_lines) == before
    now += 1
    watch.beat()
    assert len(log_lines) > before


@pytest.mark.parametrize(
    ("state", "end", "diverged"), [("failed", "nan", True), ("failed", 2.0, False), ("running", "nan", False)]
)
def test_only_a_failed_run_without_finite_losses_has_diverged(tmp_path, state, end, diverged):
    studies.write_run(tmp_path / "run", (2.0, float(end)), (3.0, float(end)))
    write_status(tmp_path / "run", {"state": state, "time": 1.0, "metrics": {}})
    assert has_diverged(tmp_path / "run") is diverged
    assert not has_diverged(tmp_path / "nothing")
