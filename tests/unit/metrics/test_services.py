"""TensorBoard and Weights & Biases see one run over all of its attempts."""

import io
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest

from tests.helpers import runs
from tests.helpers.metrics import train
from tests.helpers.wandb_files import offline_runs
from tokenization.errors import InfrastructureError, UserError
from trainer.metrics.jsonl import read_attempts, read_metrics
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


@pytest.mark.parametrize(
    ("at", "steps"),
    [("online", [1, 2, 3, 2]), ("offline", [1, 2, 3, 1, 2])],  # offline each start writes the whole run
)
def test_weights_and_biases_sees_one_run_over_all_attempts(tmp_path, monkeypatch, at, steps):
    started, logged = [], []

    class Run:
        offline = at == "offline"

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
    train(tmp_path, [1, 2, 3], logging=logging)
    train(tmp_path, [2], logging=logging, restored_step=1)
    assert [start["project"] for start in started] == ["demo", "demo"]
    assert started[0]["id"] == started[1]["id"]
    assert [record["step"] for record in logged] == steps
    assert all(record.keys() == {"step", "tokens", "loss/train"} for record in logged)


ATTEMPT = """
import io, os, signal, sys, time
from pathlib import Path
from trainer.metrics.log import Metrics
from trainer.recipe.schema import Logging

folder, first, last, restored, killed = Path(sys.argv[1]), *(int(word) for word in sys.argv[2:])
metrics = Metrics(
    folder, Logging(tensorboard=False, wandb_project="demo"), rank=0, name="x", total_tokens=9,
    restored_step=None if restored < 0 else restored, config={"seq_len": 7}, stream=io.StringIO(),
)
for step in range(first, last + 1):
    values = {"loss/train": 1 / (step + 3 + first), "eval/upstream/forgetting": float("nan")}
    metrics.log(step, step * 10, values)
if killed:
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGKILL)
metrics.close()
"""


def test_real_weights_and_biases_keeps_one_run_over_a_kill_and_a_resume(tmp_path):
    """With the real package, which is an extra, offline; its files are read back."""
    pytest.importorskip("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    offline = {**kept, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONPATH": str(runs.ROOT)}
    for words, status in ((("1", "4", "-1", "1"), -signal.SIGKILL), (("3", "6", "2", "0"), 0)):
        started = [sys.executable, "-c", ATTEMPT, str(tmp_path), *words]
        done = subprocess.run(started, env=offline, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == status, done.stderr
    (killed, before), (resumed, after) = offline_runs(tmp_path)
    history = read_metrics(tmp_path)
    assert killed == resumed
    assert (killed["project"], killed["config"]["seq_len"]) == ("demo", 7)
    assert killed["id"] == read_attempts(tmp_path)[0].run_id
    # The last file holds the whole run, each step once: to sync it replaces what was synced before.
    assert [row["step"] for row in before] == [1, 2, 3, 4]
    assert [row["step"] for row in after] == [1, 2, 3, 4, 5, 6]
    assert not any({"attempt", "time"} & set(row) for row in after)
    for row, record in zip(after, history, strict=True):
        shared = {name: record[name] for name in ("step", "tokens", "loss/train")}
        assert {name: row[name] for name in shared} == shared  # to the last digit
        assert math.isnan(float(row["eval/upstream/forgetting"]))


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
