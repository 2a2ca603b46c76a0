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
