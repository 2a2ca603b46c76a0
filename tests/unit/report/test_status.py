"""`rewarm status`: what a run is doing, from its own words, the queue, and its silence."""

import json
import os
import time

import pytest

from tests.helpers.metrics import train
from tokenization.errors import UserError
from trainer.machine.slurm import QueuedJob
from trainer.metrics import names
from trainer.metrics.heartbeat import queued_status, write_status
from trainer.report import status as status_module
from trainer.report.status import STALE_S, duration, judge, status_table, statuses_of
from trainer.storage.run_directory import RunDirectory

WAITS, RUNS = QueuedJob("PENDING", "Priority", ""), QueuedJob("RUNNING", "None", "n[1-2]")


def says(state, *, age=0.0, job="7", message=None):
    return {"state": state, "time": 1000.0 - age, "job": job, "message": message}


@pytest.mark.parametrize(
    ("status", "queue", "ended", "state", "note"),
    [
        (says("running", age=STALE_S - 1), {}, False, "running", ""),
        (says("saving"), None, False, "saving", ""),
        (says("running") | {"step_time": 100.0}, {}, False, "running", "no step for 15 min"),
        (says("running") | {"step_time": 900.0}, {}, False, "running", ""),
        (says("running", age=STALE_S), {}, False, "gone", "no sign of life since 1970-01-01"),
        (says("running", age=7200, job=None), None, False, "gone", "(2 h 0 min ago)"),
        (says("running"), {}, True, "gone", "no sign of life since"),
        (says("running", age=90), {"7": RUNS}, False, "starting", "job 7 is RUNNING on n[1-2]; no sign of"),
        (says("running", age=90), {"7": WAITS}, False, "queued", "job 7 waits: Priority"),
        (says("stopped", message="SIGUSR1 at step 5"), {}, False, "stopped", "SIGUSR1 at step 5"),
        (says("stopped", message="SIGUSR1 at step 5"), {"7": WAITS}, False, "queued", "job 7 waits"),
        (says("stopped"), {"7": RUNS}, False, "starting", "job 7 is RUNNING on n[1-2]"),
        (says("failed", age=10**6, message="disk"), {}, False, "failed", "disk"),
        (says("finished", age=10**6), {"7": RUNS}, False, "finished", ""),
        (says("queued"), {"7": WAITS}, False, "queued", "job 7 waits: Priority"),
        (says("queued", age=10**6), None, False, "queued", "squeue cannot be asked here"),
        (says("queued"), {}, False, "gone", "has not begun to train; see logs/job-7.log"),
    ],
)
def test_what_a_run_is_doing(status, queue, ended, state, note, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    found = judge(status, queue, 1000.0, ended=ended)
    assert found[0] == state
    assert note in found[1]
    assert bool(note) == bool(found[1])


@pytest.fixture
def queue(monkeypatch):
    """Slurm's queue, as a test sets it; which jobs were asked for."""
    jobs, asked = {}, []

    def queued(wanted):
        asked.append(sorted(wanted))
        return jobs

    monkeypatch.setattr(status_module, "queued_jobs", queued)
    return jobs, asked


def write(run, state, **fields):
    run.mkdir()
    numbers = {"step": 4, "tokens": 400, "total_tokens": 1000, "eta_s": 90.0, "metrics": {}}
    process = {"host": "elsewhere", "pid": 1, "job": None}
    status = {**numbers, **process, "message": None, "time": time.time(), "state": state}
    write_status(run, status | fields)


def test_a_table_of_any_runs(tmp_path, queue):
    numbers = {names.LOSS: 2.5, names.FORGETTING: -0.25, names.TOKENS_PER_S: 12345.0}
    write(tmp_path / "live", "running", metrics=numbers, job="5")
    write(tmp_path / "done", "finished", job="6")
    write(tmp_path / "dead", "running", time=time.time() - 3600)
    (tmp_path / "queued").mkdir()
    write_status(tmp_path / "queued", queued_status(tmp_path / "queued"))
    RunDirectory(tmp_path / "queued").submission.write_text(json.dumps({"job": "8"}))
    train(tmp_path / "old", [1, 2])
    queue[0]["8"] = WAITS
    runs = [tmp_path / name for name in ("live", "done", "dead", "queued", "old")]
    found = statuses_of(runs)
    assert queue[1] == [["5", "8"]]
    assert [status.state for status in found] == ["running", "finished", "gone", "queued", "unknown"]
    head, _, *lines = status_table(found).splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    expected = "running 4 40% 2.5000 - - -0.2500 12.3k 1 min elsewhere, job 5"
    assert lines[0].split(maxsplit=1)[1].split() == expected.split()
    assert "has no status.json" in lines[4]
    assert found[4].metrics[names.LOSS] == pytest.approx(1 / 5)


def test_a_process_of_this_machine_that_has_ended_is_gone_at_once(tmp_path, queue, monkeypatch):
    monkeypatch.setattr(status_module.socket, "gethostname", lambda: "here")
    write(tmp_path / "alive", "running", host="here", pid=os.getpid())
    write(tmp_path / "ended", "running", host="here", pid=2**22 + 1)
    assert [one.state for one in statuses_of([tmp_path / "alive", tmp_path / "ended"])] == ["running", "gone"]


def test_a_folder_that_is_not_a_run_is_named_and_hides_no_other(tmp_path, queue):
    write(tmp_path / "run", "running")
    (tmp_path / "recipe.yaml").write_text("")
    found = statuses_of([tmp_path / "recipe.yaml", tmp_path / "run"])
    assert [(one.state, one.note) for one in found] == [
        ("unknown", "is not a run directory"),
        ("running", ""),
    ]
    with pytest.raises(UserError, match=r"is not a run directory"):
        statuses_of([tmp_path])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.4, "59 s"), (60, "1 min"), (3600, "1 h 0 min"), (90061, "1 d 1 h")],
)
def test_times_are_written_in_their_largest_units(seconds, text):
    assert duration(seconds) == text
