"""TensorBoard and Weights & Biases see one run over all of its attempts."""

import io
import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from tests.helpers.metrics import train
from tokenization.errors import InfrastructureError, UserError
from trainer.metrics.log import Metrics
from trainer.metrics.services import MLflow, check_services
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


def test_mlflow_sees_one_run_over_all_attempts(tmp_path, monkeypatch):
    """With the real package, which is an extra, and a database of its own."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    logging = Logging(tensorboard=False, mlflow_experiment="demo")
    train(tmp_path / "run", [1, 2], logging=logging, loss=lambda step: step)
    train(tmp_path / "run", [2, 3], logging=logging, loss=lambda step: -step, restored_step=1)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert run.info.status == "FINISHED"
    losses = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "loss/train")}
    assert losses == {1: 1, 2: -2, 3: -3}


class Server:
    """In place of mlflow's client: it keeps what it is sent, and fails when it is told to."""

    def __init__(self):
        self.down, self.sent = False, []

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments, which, max_results):
        return []

    def create_run(self, experiment, tags, run_name):
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def log_dict(self, run, tree, name):
        pass

    def log_batch(self, run, metrics):
        if self.down:
            raise ConnectionError("no route to host")
        self.sent += [(one.key, one.value, one.step) for one in metrics]

    def set_terminated(self, run):
        pass


def test_an_mlflow_server_that_fails_does_not_stop_the_run(monkeypatch, caplog):
    server = Server()
    metric = namedtuple("Metric", "key value timestamp step")
    module = SimpleNamespace(MlflowClient=lambda: server, entities=SimpleNamespace(Metric=metric))
    monkeypatch.setitem(__import__("sys").modules, "mlflow", module)
    sink = MLflow("demo", "run", "id", {})
    sink.log({"step": 1, "loss/train": 2.0, "grad_norm": float("nan")})
    server.down = True
    for step in (2, 3):
        sink.log({"step": step, "loss/train": 1.0})
    server.down = False
    sink.log({"step": 4, "loss/train": 0.5})
    sink.close()
    assert server.sent == [("loss/train", 2.0, 1), ("loss/train", 0.5, 4)]


def test_an_mlflow_server_that_is_not_there_is_told_at_the_start(monkeypatch):
    def missing():
        raise ConnectionError("no route to host")

    monkeypatch.setitem(__import__("sys").modules, "mlflow", SimpleNamespace(MlflowClient=missing))
    with pytest.raises(InfrastructureError, match=r"mlflow_experiment: 'demo'.* \(no route to host\)"):
        MLflow("demo", "run", "id", {})
