"""Services that receive a run's metrics beside `metrics.jsonl`: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenization.errors import UserError
from trainer.metrics.jsonl import Record
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
        import wandb

        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", dir=str(run_dir), config=dict(config)
        )
        # W&B's own step cannot go back after a restore; a metric as the axis can.
        self._run.define_metric("*", step_metric="step")

    def log(self, record: Record) -> None:
        """Send one record."""
        self._run.log(dict(record))

    def flush(self) -> None:
        """Nothing to do: a process of W&B's own has the record."""

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()
