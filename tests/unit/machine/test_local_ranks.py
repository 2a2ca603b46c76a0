"""Programs that run together: so many at a time, each heard when the study is told to stop."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from trainer.machine import local_ranks

KILLED = "import os; os.kill(os.getpid(), 9)"
WAITS = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\ntime.sleep(60)"


@pytest.fixture
def started(monkeypatch):
    """Programs are lines of Python, without a launcher; (line, place) of each that was started."""
    found = []

    def start(program, count, place=None):
        found.append((program[0], place))
        return subprocess.Popen([sys.executable, "-c", program[0]])

    monkeypatch.setattr(local_ranks, "_start", start)
    return found


def test_no_more_run_than_are_asked_for_and_every_status_is_returned(started):
    at_once = []
    alive = set()

    def begin(name):
        alive.add(name)
        at_once.append(len(alive))

    def end(name, status):
        alive.discard(name)
        return True

    programs = {
        "a": ["pass"],
        "b": ["raise SystemExit(2)"],
        "c": ["import os; os.kill(os.getpid(), 9)"],
        "d": ["pass"],
    }
    found = local_ranks.run_together(programs, 1, 2, started=begin, ended=end, every_s=0.02)
    assert found == {"a": 0, "b": 2, "c": 1, "d": 0}
    assert max(at_once) == 2
    assert {place for _, place in started} == {0, 1}
    assert [line for line, _ in started] == [program[0] for program in programs.values()]


def test_one_at_a_time_takes_all_devices_and_no_more_start_once_it_is_enough(started):
    programs = {"a": ["pass"], "b": ["raise SystemExit(75)"], "c": ["pass"]}
    found = local_ranks.run_together(programs, 1, 1, ended=lambda name, status: status != 75, every_s=0.02)
    assert found == {"a": 0, "b": 75}
    assert [place for _, place in started] == [None, None]


@pytest.fixture
def unheard():
    """A command that this process has run before, such as `rewarm train`, may still end it at a signal."""
    before = signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(before)


def test_a_signal_reaches_all_that_run_and_nothing_is_started_after_it(started, unheard, monkeypatch):
    monkeypatch.setattr(local_ranks, "signal_ranks", os.kill)
    programs = {name: [WAITS] for name in "abc"}

    def soon():
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=soon, daemon=True).start()
    found = local_ranks.run_together(programs, 1, 2, every_s=0.02)
    assert found == {"a": 75, "b": 75}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("visible", "total", "expected"),
    [(None, 6, ("0,1", "4,5")), (None, 4, ("0,1", "0,1")), ("2,3,6,7", 8, ("2,3", "2,3"))],
)
def test_programs_that_run_together_take_different_gpus_as_far_as_there_are(
    monkeypatch, visible, total, expected
):
    launched = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: launched.append(words))
    monkeypatch.setattr(local_ranks, "has_cuda", lambda: True)
    monkeypatch.setattr(local_ranks, "count_devices", lambda: total)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for place in (None, 0, 2):
        local_ranks._start(["train.py", "recipe.yaml"], 2, place)
    assert [words[1:3] for words in launched] == [
        ["--num_accelerators", "2"],
        *(["--include", f"localhost:{own}"] for own in expected),
    ]
    assert all(words[-2:] == ["train.py", "recipe.yaml"] for words in launched)
