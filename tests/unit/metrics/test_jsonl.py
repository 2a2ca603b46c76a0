"""The record of a run: nothing is rounded, nothing is lost by a kill, a restored step counts once."""

import errno
import io
import json
import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.metrics import train
from tokenization.errors import UserError
from trainer.metrics.jsonl import read_attempts, read_metrics, trained_twice
from trainer.metrics.log import Metrics
from trainer.recipe.schema import Logging


def test_every_digit_survives(tmp_path):
    train(tmp_path, [1, 2], loss=lambda step: 1.0 if step == 1 else math.nextafter(1.0, 2.0))
    first, second = read_metrics(tmp_path)
    assert first["loss/train"] == 1.0
    assert second["loss/train"] == math.nextafter(1.0, 2.0)
    assert (first["step"], first["tokens"], first["attempt"]) == (1, 10, 1)


@given(value=st.floats(allow_nan=False))
def test_any_number_comes_back_equal(tmp_path_factory, value):
    run_dir = tmp_path_factory.mktemp("run")
    train(run_dir, [0], loss=lambda _: value)
    assert read_metrics(run_dir)[0]["loss/train"] == value


def test_steps_after_the_restored_one_count_as_they_were_done_again(tmp_path):
    train(tmp_path, range(1, 9), loss=lambda step: step)  # saved at 5, killed after 8
    train(tmp_path, range(6, 8), loss=lambda step: -step, restored_step=5)  # killed after 7
    assert [record["loss/train"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, -6, -7]
    assert [(a["loss/train"], b["loss/train"]) for a, b in trained_twice(read_attempts(tmp_path))] == [
        (6, -6),
        (7, -7),
    ]
    first, second = read_attempts(tmp_path)
    assert [record["step"] for record in first.records] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (second.number, second.restored_step) == (2, 5)
    assert first.run_id == second.run_id


def test_a_start_afresh_in_the_same_directory_undoes_everything(tmp_path):
    train(tmp_path, [0, 1, 2])
    train(tmp_path, [0, 1], loss=lambda step: 9.0)
    assert [record["loss/train"] for record in read_metrics(tmp_path)] == [9.0, 9.0]
    assert [before["step"] for before, _ in trained_twice(read_attempts(tmp_path))] == [1]  # 0 is the base


@given(data=st.data())
def test_however_often_a_run_is_killed_its_history_is_the_uninterrupted_one(tmp_path_factory, data):
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    train(whole, range(1, 21))
    restored = None
    for _ in range(data.draw(st.integers(0, 4))):
        first = (restored or 0) + 1
        done = data.draw(st.integers(first, 20))
        train(broken, range(first, done + 1), restored_step=restored)
        restored = data.draw(st.integers(1, min(done, 19)))
    train(broken, range((restored or 0) + 1, 21), restored_step=restored)
    assert [(r["step"], r["loss/train"]) for r in read_metrics(broken)] == [
        (r["step"], r["loss/train"]) for r in read_metrics(whole)
    ]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_torn_by_a_kill_spoils_nothing(tmp_path, cut):
    train(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    train(tmp_path, [2, 3], restored_step=1)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read .*run directory"):
        read_metrics(tmp_path)


DAMAGE = {
    "cut": lambda line: line[: len(line) // 2],
    "empty": lambda line: b"",
    "rubbish": lambda line: b"\x00" * 40,
    "not UTF-8": lambda line: b"\xff\xfe" + line,
    "a list": lambda line: b"[1]",
    "no step": lambda line: line.replace(b'"step"', b'"stop"').replace(b'"number"', b'"nummer"'),
    "a word": lambda line: re.sub(rb'"(loss/train|restored_step)": [^,}]*', rb'"\1": "much"', line),
    "deep": lambda line: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", range(6))
def test_a_damaged_line_costs_itself_and_no_other(tmp_path, log_lines, damage, number):
    """Whichever line it is: of the two starts, or of the steps 0 1 | 1 2."""
    train(tmp_path, [0, 1], loss=lambda _: 0.25)
    run_id = read_attempts(tmp_path)[0].run_id
    train(tmp_path, [1, 2], loss=lambda _: 0.25, restored_step=0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[number] = DAMAGE[damage](lines[number])
    path.write_bytes(b"\n".join(lines))
    damaged = path.read_bytes()

    attempts = read_attempts(tmp_path)
    assert [message for message in log_lines if "jsonl" in message] == [
        f"{path}: passed over 1 damaged line(s) of 6: {number + 1}"
    ]
    written = [(1, 0), (1, 1), (2, 1), (2, 2)]
    kept = [each for line, each in zip((1, 2, 4, 5), written, strict=True) if line != number]
    assert [(each["attempt"], each["step"]) for one in attempts for each in one.records] == kept
    assert [(one.number, one.restored_step) for one in attempts] == [(1, None), (2, 0)]
    undone = (1, 1)
    assert [record["step"] for record in read_metrics(tmp_path)] == [
        step for attempt, step in kept if (attempt, step) != undone
    ]

    train(tmp_path, [3], restored_step=2)  # and the run goes on
    assert path.read_bytes().startswith(damaged), "nothing of what is there is rewritten"
    *_, last = read_attempts(tmp_path)
    assert (last.number, last.restored_step) == (3, 2)
    assert last.run_id == run_id or number == 0


def test_a_torn_last_line_is_said_once_and_the_next_record_begins_a_line(tmp_path, log_lines):
    train(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    read_metrics(tmp_path)
    assert log_lines == [f"{path}: passed over its last line, which is cut short"]
    log_lines.clear()
    train(tmp_path, [3], restored_step=2)
    (told,) = log_lines
    assert told.startswith(f"{path}: removed its last line, which a kill or a power cut had cut short: '{{")
    log_lines.clear()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    assert log_lines == []


def test_what_a_full_disk_does_not_take_is_written_when_there_is_room(tmp_path):
    metrics = Metrics(
        tmp_path, Logging(tensorboard=False), rank=0, name="x", total_tokens=100, stream=io.StringIO()
    )
    (truth, *_) = metrics._sinks
    room, disk = [17], truth._file

    def write(data):  # as a file does: a part, and then an error
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = disk.write(data[: room[0]])
        room[0] -= taken
        return taken

    truth._file = SimpleNamespace(write=write)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            metrics.log(step, step * 10, {"loss/train": 1.0})
    room[0] = 10**6
    metrics.log(3, 30, {"loss/train": 1.0})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_an_older_file_is_read_with_todays_names(tmp_path):
    """Sources once stood beside the totals, which a source called `train` overwrote."""
    start = {"number": 1, "restored_step": None, "time": 0.0, "run_id": "x"}
    kept = {"attempt": 1, "time": 1.0, "step": 1, "tokens": 10, "tokens/skipped": 0, "loss/train": 2.0}
    old = {**kept, "loss/zh": 1.5, "tokens/zh": 10, "epochs/zh": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(old) + "\n")
    train(tmp_path, [2], restored_step=1)
    first, second = read_metrics(tmp_path)
    assert first == {**kept, "loss/source/zh": 1.5, "tokens/source/zh": 10, "epochs/source/zh": 0.5}
    assert second["step"] == 2
