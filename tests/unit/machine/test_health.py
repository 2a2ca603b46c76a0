"""Signals, hangs, spikes, numbers that are not finite, and stale compile locks."""

import io
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.errors import UserError
from trainer.machine import compile_cache
from trainer.machine.compile_cache import clear_stale_locks, clearing_stale_locks
from trainer.machine.signals import Signals
from trainer.machine.watchdog import Watchdog
from trainer.metrics.stability import NonFinite, Spikes, robust_z

# ----------------------------------------------------------------------------------------------- signals


@pytest.fixture(autouse=True)
def handlers():
    """Those of pytest come back, whatever a test leaves behind."""
    before = {number: signal.getsignal(number) for number in Signals.WATCHED}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_is_a_question_for_the_loop_and_a_status_for_the_requeue(number, status):
    with Signals() as signals:
        assert (signals.stop_requested, signals.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (signals.stop_requested, signals.exit_code) == (True, status)


def test_the_first_signal_says_why_and_a_second_ctrl_c_does_not_wait():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received is signal.SIGUSR1
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back_unless_the_run_was_stopped(handlers):
    with Signals():
        assert {number: signal.getsignal(number) for number in Signals.WATCHED} != handlers
    assert {number: signal.getsignal(number) for number in Signals.WATCHED} == handlers
    with Signals():
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)  # srun's, because another rank has ended: this one ends cleanly too


def test_a_failure_after_a_signal_gives_the_handlers_back(handlers):
    def fail():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Signals():
        fail()
    assert {number: signal.getsignal(number) for number in Signals.WATCHED} == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_is_stopped_while_it_loads_is_put_back_into_the_queue(number):
    loading = (
        "from trainer.machine.signals import *; exit_on_signal(); print('up', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", loading], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == 75


def test_a_rank_that_was_not_signalled_stops_with_the_status_of_one_that_was():
    with Signals() as signals:
        signals.agree([None, signal.SIGUSR1])
        assert (signals.stop_requested, signals.exit_code) == (True, 75)
    with Signals() as signals:
        signals.agree([None, None])
        assert (signals.stop_requested, signals.exit_code) == (False, 0)


# ----------------------------------------------------------------------------------------------- numbers


def test_skipped_steps_are_borne_until_too_many_come_in_a_row():
    watch = NonFinite(limit=3)
    for step, applied in enumerate([False, False, True, False, False]):
        watch.update(step, applied)
    assert (watch.in_a_row, watch.total) == (2, 4)
    with pytest.raises(UserError, match=r"step 5: .*3 steps in a row.*lower max_lr"):
        watch.update(5, applied=False)


def test_robust_z_against_values_written_by_hand():
    history = [1.0, 2.0, 3.0, 4.0, 100.0]  # median 3; deviations 2 1 0 1 97, their median 1
    assert robust_z(history, 3.0) == 0
    assert robust_z(history, 3.0 + 1.4826) == pytest.approx(1)
    assert robust_z(history, 0.0) == pytest.approx(-3 / 1.4826)
    assert robust_z([2.0] * 9, 2.002) == pytest.approx(1)  # flat: 0.1 % of 2 is one deviation
    assert robust_z(history, math.nan) == math.inf


@given(
    st.lists(st.floats(-100, 100), min_size=5, max_size=50),
    st.floats(-100, 100),
    st.floats(-100, 100),
)
def test_robust_z_rises_with_the_value(history, first, second):
    low, high = sorted([first, second])
    assert robust_z(history, low) <= robust_z(history, high)


def test_a_spike_stands_out_from_noise_and_from_a_falling_loss():
    noise = random.Random(0)
    spikes = Spikes()
    for step in range(600):
        assert spikes.update(4 * math.exp(-step / 200) + 2 + noise.gauss(0, 0.05)) is None, step
    assert spikes.update(4.0) > 8
    assert spikes.update(math.nan) == math.inf
    assert spikes.update(2.25) is None


def test_no_spike_is_seen_before_there_is_a_history():
    spikes = Spikes(at_least=4)
    assert [spikes.update(loss) for loss in (1.0, 50.0, 1.0, 1.0)] == [None] * 4
    assert spikes.update(1e6) is not None


# ----------------------------------------------------------------------------------------------- hangs


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
        assert "test_health.py" in told
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


def test_a_run_that_beats_is_left_alone(tmp_path):
    stream = io.StringIO()
    with Watchdog(patience_s=30, stream=stream) as watchdog:
        watchdog.beat("step 1")
    assert stream.getvalue() == ""


# ----------------------------------------------------------------------------------------------- locks

HOLD = """
import os, sys, time
os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)  # as torch's FileBaton does
print("held", flush=True)
time.sleep(60)
"""


def holder(lock: Path) -> subprocess.Popen:
    lock.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_kept_while_its_holder_lives_and_removed_once_it_was_killed(tmp_path):
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    said = []
    process = holder(lock)
    try:
        assert clear_stale_locks(said.append, tmp_path) == []
        assert lock.exists()
        assert said == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert lock.exists(), "a killed holder leaves its lock: that is the trouble"
    assert clear_stale_locks(said.append, tmp_path) == [lock]
    assert not lock.exists()
    assert len(said) == 1
    assert str(lock) in said[0]


def test_a_holder_that_dies_while_it_is_waited_for_does_not_hang_the_start(tmp_path):
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    process = holder(lock)
    with clearing_stale_locks(lambda _: None, tmp_path, every_s=0.05):
        assert lock.exists()
        process.kill()
        process.wait()
        process.stdout.close()
        deadline = time.monotonic() + 20
        while lock.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_compiler_that_outlived_its_rank_is_waited_for(tmp_path):
    lock = tmp_path / "fused_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    compiler = subprocess.Popen(["sleep", "60"], cwd=lock.parent)
    try:
        assert clear_stale_locks(pytest.fail, tmp_path) == []
    finally:
        compiler.kill()
        compiler.wait()
    assert clear_stale_locks(lambda _: None, tmp_path) == [lock]


def test_a_young_lock_on_a_network_file_system_may_be_another_machines(tmp_path, monkeypatch):
    lock = tmp_path / "fused_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setattr(compile_cache, "_on_network", lambda file: True)
    assert clear_stale_locks(lambda _: None, tmp_path) == []
    old = time.time() - compile_cache.SHARED_LOCK_AGE_S - 1
    os.utime(lock, (old, old))
    assert clear_stale_locks(lambda _: None, tmp_path) == [lock]


def test_no_cache_and_no_lock_are_nothing_to_speak_of(tmp_path):
    assert clear_stale_locks(pytest.fail, tmp_path / "absent") == []
    (tmp_path / "op").mkdir()
    assert clear_stale_locks(pytest.fail, tmp_path) == []


def test_the_cache_is_found_where_torch_finds_it(monkeypatch):
    extension = pytest.importorskip("torch.utils.cpp_extension")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert str(compile_cache.extension_cache()) == extension.get_default_build_root()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/some/where")
    assert compile_cache.extension_cache() == Path("/some/where")
