"""A run that makes no progress is reported with the stacks of all threads."""

import io
import time
from pathlib import Path

import pytest

from trainer.machine.watchdog import LAST_WORDS_S, Watchdog


def test_a_silence_is_told_once_with_all_stacks_until_the_next_beat(tmp_path):
    now = [0.0]
    with (tmp_path / "log").open("w+") as stream:
        watchdog = Watchdog(patience_s=60, stream=stream, clock=lambda: now[0])
        now[0] = 59
        assert not watchdog.look()
        watchdog.beat("step 7")
        now[0] = 118
        assert not watchdog.look()
        now[0] = 119
        assert watchdog.look()
        assert not watchdog.look()
        told = Path(stream.name).read_text()
        assert "no progress for 60 s while step 7" in told
        assert "test_watchdog.py" in told
        watchdog.beat("saving")
        now[0] = 200
        assert watchdog.look()


def test_the_thread_looks_by_itself_and_ends_with_the_run(tmp_path):
    with (tmp_path / "log").open("w+") as stream:
        with Watchdog(patience_s=0.05, stream=stream):
            deadline = time.monotonic() + 5
            while "no progress" not in Path(stream.name).read_text() and time.monotonic() < deadline:
                time.sleep(0.01)
        assert "while starting" in Path(stream.name).read_text()


@pytest.mark.parametrize(("step_s", "patience_s"), [(1, 20), (60, 90)])
def test_a_run_that_was_asked_to_stop_and_waits_for_a_dead_rank_ends(step_s, patience_s):
    now, asked, ended, stream = [0.0], [False], [], io.StringIO()
    watchdog = Watchdog(
        stop_requested=lambda: asked[0], end=ended.append, stream=stream, clock=lambda: now[0]
    )
    watchdog.beat("step 1")
    now[0] += step_s
    watchdog.beat("step 2")
    now[0] += 500  # it waits long before it is asked: that is no reason
    assert not watchdog.look_after_stop()
    asked[0] = True
    assert not watchdog.look_after_stop()
    now[0] += patience_s - 1
    assert not watchdog.look_after_stop()
    now[0] += 1
    assert watchdog.look_after_stop()
    assert ended == [75]
    assert "asked to stop, but no progress for" in stream.getvalue()
    assert "while step 2: another rank does not answer" in stream.getvalue()


def test_a_save_after_a_stop_may_take_as_long_as_it_takes():
    now, ended = [0.0], []
    watchdog = Watchdog(
        stop_requested=lambda: True, end=ended.append, stream=io.StringIO(), clock=lambda: now[0]
    )
    watchdog.beat("saving step 3", saving=True)
    watchdog.look_after_stop()
    now[0] += 3000
    assert not watchdog.look_after_stop()
    watchdog.beat("step 4")
    now[0] += 20
    assert watchdog.look_after_stop()
    assert ended == [75]


def test_a_run_that_beats_is_left_alone(tmp_path):
    stream = io.StringIO()
    with Watchdog(patience_s=30, stream=stream) as watchdog:
        watchdog.beat("step 1")
    assert stream.getvalue() == ""


def test_a_run_that_makes_no_step_ends_with_its_stacks_and_a_requeue(tmp_path):
    """The first step, an evaluation and a save may take longer."""
    now, ended = [0.0], []
    with (tmp_path / "log").open("w+") as stream:
        watchdog = Watchdog(
            patience_s=10**6, hang_after_s=60, end=ended.append, stream=stream, clock=lambda: now[0]
        )
        for beat in ({}, {"stepping": True}, {"saving": True}, {}):
            watchdog.beat("step 5", **beat)
            now[0] += 59
            assert not watchdog.look_for_hang()
            now[0] += 1
            assert not watchdog.look_for_hang(), "the other ranks tell their stacks, too"
            now[0] += LAST_WORDS_S
            assert watchdog.look_for_hang() == bool(beat.get("stepping"))
        assert ended == [75]
        told = Path(stream.name).read_text()
    line = "no step for 60 s (health.hang_after) while step 5; ending unsaved, to be started again"
    assert told.count(line) == 1
    assert "test_watchdog.py" in told


def test_without_a_limit_a_hang_only_ends_with_the_process_group():
    now = [0.0]
    watchdog = Watchdog(hang_after_s=None, clock=lambda: now[0])
    watchdog.beat("step 5", stepping=True)
    now[0] += 10**9
    assert not watchdog.look_for_hang()
