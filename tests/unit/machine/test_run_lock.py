"""Two jobs in one run directory: the second waits for the first to end, or says who is there."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from tokenization.errors import InfrastructureError
from trainer.machine.run_lock import hold_run_lock

HOLD = """
import sys, time
from pathlib import Path
from trainer.machine.run_lock import hold_run_lock
with hold_run_lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def said():
    return []


def test_a_free_directory_is_taken_at_once_and_again_after_the_end(tmp_path, said):
    for _ in range(2):
        with hold_run_lock(tmp_path / "run", said.append) as waited:
            assert not waited
    assert said == []


def test_who_trains_there_is_named(tmp_path, said):
    with hold_run_lock(tmp_path, said.append):
        message = rf"run directory is in use by process {os.getpid()} on \S+; stop that job"
        with pytest.raises(InfrastructureError, match=message), hold_run_lock(tmp_path, said.append, 0.2):
            pass
        assert len(said) == 1


def test_a_job_that_ends_is_waited_for(tmp_path, said):
    first = hold_run_lock(tmp_path, said.append)
    first.__enter__()
    threading.Timer(0.5, lambda: first.__exit__(None, None, None)).start()
    with hold_run_lock(tmp_path, said.append, patience_s=30) as waited:
        assert waited


def test_a_killed_process_holds_nothing(tmp_path, said):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    message = f"process {process.pid} on"
    with pytest.raises(InfrastructureError, match=message), hold_run_lock(tmp_path, said.append, 0):
        pass
    process.kill()
    process.wait()
    began = time.monotonic()
    with hold_run_lock(tmp_path, said.append) as waited:
        assert not waited
    assert time.monotonic() - began < 10


def test_a_file_system_without_locks_is_gone_on_with(tmp_path, said, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_run_lock(tmp_path, said.append) as waited:
        assert not waited
    assert said == [
        "this file system has no locks (No locks available): make sure that only one job uses run_dir"
    ]
