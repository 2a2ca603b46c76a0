"""Signals become a stop after the step under way, and an exit code for the batch system."""

import os
import signal
import subprocess
import sys

import pytest

from trainer.machine.signals import Signals


@pytest.fixture(autouse=True)
def handlers():
    """Those of pytest come back, whatever a test leaves behind."""
    before = {number: signal.getsignal(number) for number in Signals.WATCHED}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 75),
        (signal.SIGUSR1, 75),
        (signal.SIGUSR2, 75),
        (signal.SIGHUP, 75),
        (signal.SIGXCPU, 75),
        (signal.SIGINT, 130),
        (signal.SIGQUIT, 130),
    ],
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


UP = "from trainer.machine.signals import *; import ctypes, time; {}; print('up', flush=True); {}"
IN_C = "mutex = ctypes.create_string_buffer(64); [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in '12']"
"""Waits where Python runs no handler, as in a collective: for a mutex that this thread holds already."""


def ended_by(number, before, waiting, **options):
    """The exit status of a process that gets a signal while it waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", UP.format(before, waiting)], stdout=subprocess.PIPE, **options
    )
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    return process.wait(timeout=30)


@pytest.mark.parametrize("waiting", ["time.sleep(600)", IN_C], ids=["in Python", "in C"])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_a_job_that_is_stopped_while_it_loads_or_waits_for_others_ends_at_once(number, status, waiting):
    assert ended_by(number, "exit_on_signal()", waiting) == status


def test_the_batch_script_learns_of_a_rank_that_ended_at_once(tmp_path):
    noted = tmp_path / "status"
    environment = {**os.environ, "REWARM_STATUS": str(noted)}
    assert ended_by(signal.SIGTERM, "exit_on_signal()", IN_C, env=environment) == 75
    assert set(noted.read_text().split()) == {"75"}


def test_a_rank_with_an_error_ends_with_its_exit_code_when_its_launcher_ends_it():
    assert ended_by(signal.SIGTERM, "exit_on_signal()", "time.sleep(600)") == 75
    waiting = "exit_on_signal(); threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()"
    done = subprocess.run(
        [sys.executable, "-c", f"from trainer.machine.signals import *; {waiting}; wait_for_rank0(1, 2)"],
        timeout=30,
        check=False,
    )
    assert done.returncode == 2


def test_a_signal_that_came_before_all_was_saved_ends_the_process_once_it_is():
    came = "signals = Signals().__enter__(); os.kill(os.getpid(), signal.SIGUSR1); print('noted', flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", UP.format(came, "signals.all_saved(); time.sleep(600)")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (75, "noted\nup\n")
    assert ended_by(signal.SIGTERM, "Signals().__enter__().all_saved()", IN_C) == 75


def test_a_second_ctrl_c_ends_a_process_that_waits_in_c():
    unsaved = (
        "Signals().__enter__(); threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()"
    )
    assert ended_by(signal.SIGINT, unsaved, IN_C) == 130


def test_a_run_under_nohup_outlives_its_terminal():
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN); exit_on_signal()"
    assert ended_by(signal.SIGHUP, ignore, "time.sleep(0.5)") == 0


def test_a_rank_that_was_not_signalled_stops_with_the_status_of_one_that_was():
    with Signals() as signals:
        signals.agree([None, signal.SIGUSR1])
        assert (signals.stop_requested, signals.exit_code) == (True, 75)
    with Signals() as signals:
        signals.agree([None, None])
        assert (signals.stop_requested, signals.exit_code) == (False, 0)
