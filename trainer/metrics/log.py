"""One call per step takes a run's metrics to the file, the services and the progress display."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from trainer.machine.log_lines import file_handler
from trainer.metrics.jsonl import Jsonl
from trainer.metrics.progress import Progress
from trainer.metrics.services import MLflow, Sink, TensorBoard, WandB, check_services
from trainer.recipe.schema import Logging
from trainer.storage.run_directory import RunDirectory


class Metrics:
    """Passes a run's metrics on; on ranks other than 0 it does nothing."""

    def __init__(
        self,
        run_dir: str | Path,
        logging: Logging,
        *,
        rank: int,
        name: str,
        total_tokens: int,
        tokens: int = 0,
        restored_step: int | None = None,
        config: Mapping[str, Any] | None = None,
        measured_on: Mapping[str, Mapping[str, Any]] | None = None,
        stream: TextIO | None = None,
        others: Sequence[Sink] = (),
    ) -> None:
        """Open all sinks for a run that stands at `tokens` of `total_tokens`.

        `restored_step` is the last step of the checkpoint that was loaded, None for a fresh start; `config`
        (the resolved recipe) goes to W&B; `measured_on` tells of each validation set what its scores are
        measured on; the progress goes to `stream`, standard error by default, and to the rank's log; what is
        recorded goes to `others`, too.
        """
        self._sinks: list[Sink] = []
        if rank != 0:
            return
        check_services(logging)
        run_dir = Path(run_dir)
        jsonl = Jsonl(run_dir, restored_step, measured_on=measured_on)
        self._sinks.append(jsonl)
        if logging.tensorboard:
            self._sinks.append(TensorBoard(RunDirectory(run_dir).tensorboard, restored_step))
        if logging.wandb_project:
            self._sinks.append(WandB(logging.wandb_project, name, jsonl.run_id, run_dir, config or {}))
        if logging.mlflow_experiment:
            self._sinks.append(MLflow(logging.mlflow_experiment, name, jsonl.run_id, config or {}))
        self._sinks.append(Progress(total_tokens, tokens, stream or sys.stderr))
        if file_handler.file is not None:
            self._sinks.append(Progress(total_tokens, tokens, file_handler.file))
        self._sinks += others

    def log(self, step: int, tokens: int, values: Mapping[str, Any]) -> None:
        """Record `values` (numbers by metric name) after `step` steps and `tokens` tokens of the run.

        May be called several times for a step: the metrics of all calls are kept.
        """
        if self._sinks:
            numbers = {metric: _plain(value) for metric, value in values.items()}
            record = {"step": step, "tokens": tokens, **numbers}
            for sink in self._sinks:
                sink.log(record)

    def flush(self) -> None:
        """Make what is recorded outlive a kill: a checkpoint may know of no step that the record lacks."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []


def _plain(value: Any) -> float | int:
    """A Python number with all of its digits, from one of Python, numpy or torch."""
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, (int, float)) else float(plain)
