"""However a run is ended, it is saved, no rank is left, and the exit code says whether to start it again."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.helpers import runs
from tests.helpers.ranks import Rank, environment, hear_signals, saved_steps, start_ranks, wait_until
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer
from trainer.metrics.jsonl import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def endless(data, tmp_path):
    """A run that does not end by itself, and saves nothing until it is ended; its folder and its recipe."""
    tree = runs.long_recipe(data, tmp_path / "run", 100_000)
    tree["checkpoint"]["every_tokens"] = 10**9
    tree["validation"] = {"every_tokens": 10**9}
    tree["logging"] = {"tensorboard": False}
    return tmp_path / "run", str(runs.write(tree, tmp_path / "r.yaml"))


def assert_saved(run, *ranks):
    """The newest step was saved, in words and not in a traceback."""
    assert saved_steps(run) == [runs.last_step(run)], ranks[0].said()[-3000:]
    for rank in ranks:
        assert "Traceback" not in rank.said()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR2, 75), (signal.SIGQUIT, 130)])
def test_a_signal_saves_and_ends(endless, tmp_path, number, status):
    run, recipe = endless
    rank = Rank(tmp_path / "log", recipe)
    wait_until(lambda: runs.last_step(run) >= 3, [rank])
    rank.process.send_signal(number)
    assert rank.wait() == status
    assert_saved(run, rank)


GLOO = {"CXX": "no-compiler"}
"""No shared-memory collectives of DeepSpeed: they wait in C without letting go of Python's lock."""

ON_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Makes standard error the terminal that controls the process."""


def test_a_closed_terminal_saves_and_ends(endless, tmp_path):
    run, recipe = endless
    controller, terminal = pty.openpty()
    rank = Rank(tmp_path / "log", recipe, program=(sys.executable, "-c", ON_TERMINAL), stderr=terminal)
    os.close(terminal)
    wait_until(lambda: runs.last_step(run) >= 3, [rank])
    os.close(controller)
    assert rank.wait() == 75
    assert saved_steps(run) == [runs.last_step(run)]


def test_a_log_reader_that_has_gone_ends_nothing(endless, tmp_path):
    run, recipe = endless
    reading, writing = os.pipe()
    rank = Rank(tmp_path / "log", recipe, stderr=writing)
    os.close(writing)
    wait_until(lambda: runs.last_step(run) >= 3, [rank])
    os.close(reading)
    gone, since = runs.last_step(run), time.monotonic()
    # A line of the log is due every ten seconds.
    wait_until(lambda: time.monotonic() - since > 12 and runs.last_step(run) > gone, [rank])
    rank.process.send_signal(signal.SIGUSR1)
    assert rank.wait() == 75
    assert saved_steps(run) == [runs.last_step(run)]


def test_sigterm_to_the_deepspeed_command_leaves_no_rank(endless, tmp_path):
    run, recipe = endless
    command = runs.command(Path(recipe), 2)
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(
            command, env=environment(), stdout=log, stderr=log, preexec_fn=hear_signals
        )
    while runs.last_step(run) < 3:
        assert launcher.poll() is None, (tmp_path / "log").read_text()[-3000:]
    below = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    _, left = psutil.wait_procs(below, timeout=60)
    for process in left:
        process.kill()
    assert not left
    assert saved_steps(run) == [runs.last_step(run)], (tmp_path / "log").read_text()[-3000:]


def test_a_killed_peer_ends_the_others_with_one_line_and_a_requeue(endless, tmp_path):
    _, recipe = endless
    ranks = start_ranks(tmp_path, 2, recipe, REWARM_STATUS=str(tmp_path / "status"), **GLOO)
    wait_until(lambda: runs.last_step(tmp_path / "run") >= 3, ranks)
    ranks[1].process.kill()
    assert ranks[0].wait(60) == 75
    (line,) = [line for line in ranks[0].said().splitlines() if "another rank has gone" in line]
    assert line.startswith("rewarm: another rank has gone or cannot be reached")
    assert "Traceback" not in ranks[0].said()
    assert (tmp_path / "status").read_text().split() == ["75"]
    ranks[1].wait()


def test_sigterm_is_heard_while_a_rank_waits_for_one_that_never_comes(endless, tmp_path):
    _, recipe = endless
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(runs.free_port())}
    rank = Rank(tmp_path / "log", recipe, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", **meeting)
    wait_until(lambda: "waiting for all 2 ranks" in rank.said(), [rank])
    rank.process.send_signal(signal.SIGTERM)
    assert rank.wait(20) == 75


def test_sigterm_is_heard_while_a_rank_waits_for_one_that_hangs(endless, tmp_path):
    run, recipe = endless
    ranks = start_ranks(tmp_path, 2, recipe, **GLOO)
    wait_until(lambda: runs.last_step(run) >= 3, ranks)
    ranks[1].process.send_signal(signal.SIGSTOP)
    try:
        ranks[0].process.send_signal(signal.SIGTERM)
        assert ranks[0].wait(60) == 75
        assert "another rank does not answer" in ranks[0].said()
    finally:
        ranks[1].process.kill()
        ranks[1].wait()


def test_sigterm_cuts_a_validation_short_and_the_next_start_makes_up_for_it(data, tmp_path):
    run, step = tmp_path / "run", 8 * 32
    tokenizer = open_tokenizer(data / "tokenizer")
    identity = {"tokenizer": tokenizer.fingerprint, "eos_id": tokenizer.eos_id}
    with ShardWriter(tmp_path / "long", vocab_size=tokenizer.size, **identity) as shard:
        for seed in range(3000):
            ids = np.random.default_rng(seed).integers(300, tokenizer.size, 64)
            shard.add_document(np.array([*ids, tokenizer.eos_id]), 100)
    tree = runs.long_recipe(data, run, 4)
    tree["validation"] = {"every_tokens": 2 * step, "downstream": str(tmp_path / "long")}
    tree["checkpoint"]["every_tokens"] = 10**9
    recipe = str(runs.write(tree, tmp_path / "r.yaml"))
    ranks = start_ranks(tmp_path, 2, recipe, "micro_batch_size=1")
    wait_until(lambda: runs.last_step(run) >= 1, ranks)
    ranks[1].process.send_signal(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [75, 75]
    (saved,) = saved_steps(run)
    assert saved == runs.last_step(run) <= 2

    assert [rank.wait() for rank in start_ranks(tmp_path, 2, recipe)] == [0, 0]
    assert scored_steps(run) == [0, 2, 4]

    # As a run whose last validation was cut short has it: it is finished, and scored at the next start.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    cut = [{name: line[name] for name in line if not name.startswith("eval/")} for line in lines[-2:]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines[:-2], *cut]))
    assert scored_steps(run) == [0, 2]
    finished = Rank(tmp_path / "log", recipe)
    assert finished.wait() == 0
    assert "is made up for now" in finished.said()
    assert scored_steps(run) == [0, 2, 4]
    assert Rank(tmp_path / "log", recipe).wait() == 0
    assert scored_steps(run) == [0, 2, 4]


def scored_steps(run):
    return [record["step"] for record in read_metrics(run) if "eval/downstream/bits_per_byte" in record]
