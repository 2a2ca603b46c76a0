"""A corpus that two ranks draw from a base, killed on the way: the same bytes as without the kill."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import runs
from tests.helpers.model_tiny import exported_tiny
from tokenization.shards.store import verify_shard
from trainer.machine.ranks import World
from trainer.model.generate import generate_corpus, open_base

pytestmark = pytest.mark.slow

TOKENS = 6_000


def wait_for(records: Path, process: subprocess.Popen, timeout: float = 200) -> None:
    deadline = time.monotonic() + timeout
    while not (records.exists() and records.read_bytes().count(b"\n")):
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, f"{records} was not written in {timeout} s"
        time.sleep(0.01)


def test_two_ranks_are_killed_and_go_on_to_the_same_text(tmp_path, monkeypatch):
    base, own = exported_tiny(tmp_path), tmp_path / "own"
    words = ["rewarm", "data", "generate", "--model", str(base), "--tokens", str(TOKENS), "--batch", "4"]
    command = [*words, "--out", str(own), "--nproc", "2", "--json"]
    process = subprocess.Popen(
        command, env=runs.environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(tmp_path / "own.generating" / "rank-00001.jsonl", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not own.with_suffix(".json").exists()
    done = subprocess.run(
        command, env=runs.environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["tokens"] >= TOKENS
    verify_shard(own)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for rank in range(2):
        opened = open_base(str(base), TOKENS, 1.0, 0, 2, 4, None)
        generate_corpus(opened, tmp_path / "alone", World(rank, rank, 2))
    for ending in (".bin", ".idx", ".json"):
        assert own.with_suffix(ending).read_bytes() == (tmp_path / "alone").with_suffix(ending).read_bytes()
