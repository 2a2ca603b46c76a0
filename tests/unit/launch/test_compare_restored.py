"""What a run did twice around a kill is compared, whatever lines its record holds."""

import importlib.util
from pathlib import Path

import pytest

from tests.helpers.metrics import train
from trainer.metrics.jsonl import Jsonl

SCRIPT = Path(__file__).resolve().parents[3] / "launch" / "quickstart" / "compare_restored.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare_restored", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def save_line(run, restored_step, step):
    """A start whose only line is that of a save: no loss, no LR."""
    record = Jsonl(run, restored_step)
    record.log({"step": step, "tokens": step * 10, "perf/save_s": 0.5})
    record.close()


def test_a_line_without_a_loss_is_not_compared(tmp_path, compare, capsys):
    train(tmp_path, [1, 2, 3])
    save_line(tmp_path, 1, 2)
    train(tmp_path, [3], restored_step=2)
    assert compare(tmp_path) == 0
    said = capsys.readouterr().out
    assert "restored from the checkpoints of steps [1, 2]; 1 steps were done twice" in said
    assert "all equal to the last digit" in said


def test_lines_without_a_loss_alone_leave_nothing_to_compare(tmp_path, compare, capsys):
    save_line(tmp_path, None, 2)
    save_line(tmp_path, 1, 2)
    assert compare(tmp_path) == 0
    assert "nothing to compare" in capsys.readouterr().out


@pytest.mark.parametrize(("after", "status"), [(float("nan"), 0), (1.0, 1), (float("inf"), 1)])
def test_numbers_that_are_not_finite_are_compared_like_others(tmp_path, compare, after, status):
    train(tmp_path, [1, 2], loss=lambda _: float("nan"))
    train(tmp_path, [2], loss=lambda _: after, restored_step=1)
    assert compare(tmp_path) == status


def test_a_torn_line_is_passed_over(tmp_path, compare, capsys):
    train(tmp_path, [1, 2, 3])
    train(tmp_path, [2, 3], restored_step=1)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert compare(tmp_path) == 0
    assert "1 steps were done twice" in capsys.readouterr().out
