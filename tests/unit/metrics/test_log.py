"""What goes into the record: plain numbers, from rank 0 alone."""

import io
import json
import math

import pytest

from tests.helpers.metrics import QUIET
from trainer.metrics.jsonl import read_metrics
from trainer.metrics.log import Metrics
from trainer.recipe.schema import Logging


def test_numbers_of_numpy_and_torch_and_non_finite_ones_are_strict_json(tmp_path):
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    values = {
        "a": numpy.float32(0.1),
        "b": torch.tensor(0.5),
        "c": math.nan,
        "d": -math.inf,
        "e": numpy.int64(7),
    }
    metrics = Metrics(tmp_path, QUIET, rank=0, name="run", total_tokens=10, stream=io.StringIO())
    metrics.log(1, 10, values)
    metrics.close()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    (record,) = read_metrics(tmp_path)
    assert record["a"] == float(numpy.float32(0.1))
    assert record["b"] == 0.5
    assert math.isnan(record["c"])
    assert record["d"] == -math.inf
    assert record["e"] == 7


def test_what_is_said_of_a_step_adds_up(tmp_path):
    metrics = Metrics(tmp_path, QUIET, rank=0, name="run", total_tokens=100, stream=io.StringIO())
    metrics.log(5, 50, {"loss/train": 3.0})
    metrics.log(5, 50, {"eval/upstream/bits_per_byte": 1.5})
    metrics.close()
    (record,) = read_metrics(tmp_path)
    assert (record["loss/train"], record["eval/upstream/bits_per_byte"]) == (3.0, 1.5)


def test_other_ranks_write_nothing(tmp_path):
    metrics = Metrics(tmp_path, Logging(), rank=1, name="run", total_tokens=10)
    metrics.log(1, 1, {"loss/train": 1.0})
    metrics.close()
    assert list(tmp_path.iterdir()) == []
