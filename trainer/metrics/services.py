"""Services that receive a run's metrics beside `metrics.jsonl`: TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenization.errors import InfrastructureError, UserError
from trainer.machine.log_lines import logger
from trainer.metrics.jsonl import Record, history_of, read_attempts
from trainer.recipe.schema import Logging


class Sink(Protocol):
    """A receiver of metrics."""

    def log(self, record: Record) -> None:
        """Receive one record."""

    def flush(self) -> None:
        """Hand what is buffered to the system, so that a kill loses nothing of it."""

    def close(self) -> None:
        """Write out what is buffered."""


def check_services(logging: Logging) -> None:
    """Check that the packages of the requested services are installed; needs no process group.

    Raises:
        UserError: a package is not installed.
    """
    requested = {
        "tensorboard": ("tensorboard", logging.tensorboard),
        "wandb": ("wandb_project", logging.wandb_project),
        "mlflow": ("mlflow_experiment", logging.mlflow_experiment),
    }
    for module, (option, value) in requested.items():
        if value and importlib.util.find_spec(module) is None:
            fix = f"pip install {module}, or leave logging.{option} out"
            raise UserError(f"needs the package {module}", field=f"logging.{option}", value=value, fix=fix)


class TensorBoard:
    """Event files; steps that a restore undid are hidden by TensorBoard's own `purge_step`."""

    def __init__(self, directory: Path, restored_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = 0 if restored_step is None else restored_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def log(self, record: Record) -> None:
        """Add a scalar per metric."""
        for metric, value in record.items():
            if metric != "step":
                self._writer.add_scalar(metric, value, record["step"])

    def flush(self) -> None:
        """Write the events that wait; by itself the writer does so every two minutes."""
        self._writer.flush()

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WandB:
    """Weights & Biases, one W&B run for all attempts of a run."""

    def __init__(
        self, project: str, name: str, run_id: str, run_dir: Path, config: Mapping[str, Any]
    ) -> None:
        """Go on with a W&B run; offline, write what `metrics.jsonl` keeps of the run at this start."""
        # Offline W&B writes its file every 15 s by itself, and a kill takes what is not written.
        os.environ.setdefault("WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", "1")
        import wandb

        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", dir=str(run_dir), config=dict(config)
        )
        # W&B's own step cannot go back after a restore; a metric as the axis can.
        self._run.define_metric("*", step_metric="step")
        if self._run.offline:
            # Every start writes a folder of its own, and to sync it replaces what was synced of the run.
            for record in history_of(read_attempts(run_dir, say=lambda line: None)):
                self.log({name: value for name, value in record.items() if name not in ("attempt", "time")})

    def log(self, record: Record) -> None:
        """Send one record."""
        self._run.log(dict(record))

    def flush(self) -> None:
        """Nothing to do: a process of W&B's own has the record, and writes it within a second."""

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()


class MLflow:
    """MLflow, one MLflow run for all attempts of a run; `MLFLOW_TRACKING_URI` says where."""

    def __init__(self, experiment: str, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        import mlflow

        try:
            self._run = self._open(mlflow.MlflowClient(), experiment, name, run_id, config)
        except Exception as error:  # mlflow's own, and those of whatever it talks through
            why = " ".join(str(error).split())
            raise InfrastructureError(
                f"logging.mlflow_experiment: {experiment!r}: MLflow cannot be used ({why})"
            ) from error
        self._metric, self._failed = mlflow.entities.Metric, False

    def _open(self, client: Any, experiment: str, name: str, run_id: str, config: Mapping[str, Any]) -> str:
        """Return the id of the MLflow run that an earlier attempt began, or of a new one."""
        self._client = client
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        own = f"tags.`rewarm.run_id` = '{run_id}'"
        before = self._client.search_runs([number], own, max_results=1)
        if before:
            self._client.update_run(before[0].info.run_id, "RUNNING")
            return str(before[0].info.run_id)
        made = self._client.create_run(number, tags={"rewarm.run_id": run_id}, run_name=name)
        self._client.log_dict(made.info.run_id, dict(config), "recipe.json")
        return str(made.info.run_id)

    def log(self, record: Record) -> None:
        """Send one record, without numbers that are not finite; a server that fails does not stop the run."""
        values = {name: float(value) for name, value in record.items() if name != "step"}
        now = int(1000 * time.time())
        metrics = [
            self._metric(name, value, now, int(record["step"]))
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._try(lambda: self._client.log_batch(self._run, metrics))

    def flush(self) -> None:
        """Nothing to do: each record is sent as it is logged."""

    def close(self) -> None:
        """End the MLflow run."""
        self._try(lambda: self._client.set_terminated(self._run))

    def _try(self, send: Callable[[], None]) -> None:
        try:
            send()
            self._failed = False
        except Exception as error:
            if not self._failed:
                logger.warning(f"MLflow does not take what is logged ({' '.join(str(error).split())[:200]})")
            self._failed = True
