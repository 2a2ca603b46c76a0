"""Locks that killed processes left in the cache of compiled ops, for which every start would wait."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.machine import compile_cache
from trainer.machine.compile_cache import clear_stale_locks, clearing_stale_locks

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


def test_a_lock_is_kept_while_its_holder_lives_and_removed_once_it_was_killed(tmp_path, log_lines):
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    process = holder(lock)
    try:
        assert clear_stale_locks(tmp_path) == []
        assert lock.exists()
        assert log_lines == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert lock.exists(), "a killed holder leaves its lock: that is the trouble"
    assert clear_stale_locks(tmp_path) == [lock]
    assert not lock.exists()
    (line,) = log_lines
    assert str(lock) in line


def test_a_holder_that_dies_while_it_is_waited_for_does_not_hang_the_start(tmp_path):
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    process = holder(lock)
    with clearing_stale_locks(tmp_path, every_s=0.05):
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
        assert clear_stale_locks(tmp_path) == []
    finally:
        compiler.kill()
        compiler.wait()
    assert clear_stale_locks(tmp_path) == [lock]


def test_a_young_lock_on_a_network_file_system_may_be_another_machines(tmp_path, monkeypatch):
    lock = tmp_path / "fused_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setattr(compile_cache, "_on_network", lambda file: True)
    assert clear_stale_locks(tmp_path) == []
    old = time.time() - compile_cache.SHARED_LOCK_AGE_S - 1
    os.utime(lock, (old, old))
    assert clear_stale_locks(tmp_path) == [lock]


def test_no_cache_and_no_lock_are_nothing_to_speak_of(tmp_path, log_lines):
    assert clear_stale_locks(tmp_path / "absent") == []
    (tmp_path / "op").mkdir()
    assert clear_stale_locks(tmp_path) == []
    assert log_lines == []


def test_the_cache_is_found_where_torch_finds_it(monkeypatch):
    extension = pytest.importorskip("torch.utils.cpp_extension")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert str(compile_cache.extension_cache()) == extension.get_default_build_root()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/some/where")
    assert compile_cache.extension_cache() == Path("/some/where")
