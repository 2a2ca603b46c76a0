"""TensorBoard and Weights & Biases see one run over all of its attempts."""

import io
import shutil

import pytest

from tests.helpers.metrics import train
from tokenization.errors import UserError
from trainer.metrics.log import Metrics
from trainer.metrics.services import check_services
from trainer.recipe.schema import Logging


def test_tensorboard_gets_real_event_files_without_the_undone_steps(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, [1, 2, 3, 4], logging=Logging(), loss=lambda step: step)
    train(tmp_path, [3, 4], logging=Logging(), loss=lambda step: -step, restored_step=2)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [
        (1, 1),
        (2, 2),
        (3, -3),
        (4, -4),
    ]


def test_a_kill_takes_no_event_that_was_flushed(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    metrics = Metrics(tmp_path, Logging(), rank=0, name="run", total_tokens=9, stream=io.StringIO())
    for step in (1, 2, 3):
        metrics.log(step, step, {"loss/train": float(step)})
    metrics.flush()
    killed = shutil.copytree(tmp_path / "tensorboard", tmp_path / "killed")  # the writer holds nothing back
    metrics.close()
    events = event_accumulator.EventAccumulator(str(killed))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3]


def test_weights_and_biases_is_told_missing_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(
        UserError, match=r"logging\.wandb_project: 'demo' needs the package wandb; pip install wandb"
    ):
        check_services(Logging(wandb_project="demo"))
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_sees_one_run_over_all_attempts(tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def define_metric(self, *_, **__):
            pass

        def log(self, record):
            logged.append(record)

        def finish(self):
            pass

    class Module:
        @staticmethod
        def init(**arguments):
            started.append(arguments)
            return Run()

    monkeypatch.setitem(__import__("sys").modules, "wandb", Module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    logging = Logging(tensorboard=False, wandb_project="demo")
    train(tmp_path, [1, 2], logging=logging)
    train(tmp_path, [2], logging=logging, restored_step=1)
    assert [start["project"] for start in started] == ["demo", "demo"]
    assert started[0]["id"] == started[1]["id"]
    assert [record["step"] for record in logged] == [1, 2, 2]
