"""The status of a run: at once when its state changes, from time to time otherwise, and to the last word."""

import json
import math
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers.metrics import Clock
from tokenization.errors import UserError
from trainer.metrics import heartbeat, names
from trainer.metrics.heartbeat import Heartbeat, queued_status, read_status, write_status


def seen(folder, **expected):
    """Wait until the status says this; what it says in all."""
    deadline = time.monotonic() + 20
    while True:
        status = read_status(folder)
        if all(status.get(name) == value for name, value in expected.items()):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.01)


def test_every_change_of_state_is_written_at_once(tmp_path):
    with Heartbeat(tmp_path, every_s=1000) as beat:
        status = seen(tmp_path, state="running")
        assert (status["pid"], status["step"]) == (os.getpid(), 0)
        with beat.saving():
            seen(tmp_path, state="saving")
        seen(tmp_path, state="running")
        beat.end("stopped", "SIGTERM at step 3")
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["message"]) == (
        "stopped",
        "SIGTERM at step 3",
    )


def test_position_and_metrics_are_taken_when_it_is_written(tmp_path):
    clock, position = Clock(), [10, 1000]
    with Heartbeat(tmp_path, every_s=0.01, clock=clock) as beat:
        with beat.following(lambda: tuple(position), 5000):
            seen(tmp_path, step=10, eta_s=None)
            clock.now += 50
            position[:] = 20, 2000
            beat.log({"step": 20, names.LOSS: 2.5, names.FORGETTING: math.nan, "other": 1.0})
            status = seen(tmp_path, step=20, tokens=2000, eta_s=150.0)
            assert status["total_tokens"] == 5000
            position[:] = 30, 3000
        beat.end("finished")
    status = read_status(tmp_path)
    assert (status["step"], status["tokens"]) == (30, 3000), (
        "the last position, though nobody gives it any more"
    )
    assert status["metrics"].keys() == {names.LOSS, names.FORGETTING}
    assert math.isnan(status["metrics"][names.FORGETTING])
    json.loads((tmp_path / "status.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (UserError("is wrong", field="seq_len"), "failed", "seq_len: is wrong"),
        (RuntimeError("two\nlines"), "failed", "RuntimeError: two lines"),
        (KeyboardInterrupt(), "stopped", "interrupted before its save"),
    ],
)
def test_an_error_is_the_last_word(tmp_path, error, state, message):
    with pytest.raises(type(error)), Heartbeat(tmp_path):
        raise error
    status = read_status(tmp_path)
    assert (status["state"], status["message"]) == (state, message)


def test_a_start_keeps_the_numbers_of_the_start_before(tmp_path):
    with Heartbeat(tmp_path) as beat, beat.following(lambda: (7, 70), 100):
        beat.log({names.LOSS: 1.5})
    write_status(tmp_path, queued_status(tmp_path))
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["metrics"]) == ("queued", 7, {names.LOSS: 1.5})
    with Heartbeat(tmp_path):
        assert seen(tmp_path, state="running", step=7)["metrics"] == {names.LOSS: 1.5}


def test_other_ranks_write_nothing(tmp_path):
    with Heartbeat(tmp_path, rank=1) as beat, beat.saving(), beat.following(lambda: (1, 1), 2):
        beat.log({names.LOSS: 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_at_once_says_so(tmp_path):
    script = (
        "import sys; from pathlib import Path; from trainer.metrics.heartbeat import Heartbeat; "
        "from trainer.machine.signals import end_now; "
        "beat = Heartbeat(Path(sys.argv[1])).__enter__(); end_now(75)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == 75
    status = read_status(tmp_path)
    assert status["state"] == "stopped"
    assert "exit status 75" in status["message"]


def test_a_disk_that_refuses_it_ends_nothing(tmp_path, monkeypatch):
    refused = threading.Event()

    def full(*_):
        refused.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat, "write_status", full)
    with Heartbeat(tmp_path):
        assert refused.wait(20)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "running"}', '{"metrics": 3, "state": 1}'])
def test_what_is_not_a_status_is_none(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path) == {}
