"""Writing a run's numbers: `metrics.jsonl` is the truth; TensorBoard and W&B are services."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from trainer.errors import UserError
from trainer.metrics.progress import Progress
from trainer.metrics.records import FILE, Attempt, Record, attempts
from trainer.recipe import Logging


class Sink(Protocol):
    """Something that takes the metrics of a step."""

    def log(self, record: Record) -> None:
        """Takes one record."""

    def close(self) -> None:
        """Writes out what is held back."""


class Metrics:
    """Where a run's numbers go; on any rank but 0 nowhere."""

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
        stream: TextIO | None = None,
    ) -> None:
        """Opens all sinks for a run that stands at `tokens` of `total_tokens`.

        `restored_step` is the last step of the checkpoint that was loaded, None for a fresh start; `config`
        (the resolved recipe) goes to W&B; the progress goes to `stream`, standard error by default.
        """
        self._sinks: list[Sink] = []
        self._progress: Progress | None = None
        if rank != 0:
            return
        check(logging)
        run_dir = Path(run_dir)
        truth = Jsonl(run_dir, restored_step)
        self._sinks.append(truth)
        if logging.tensorboard:
            self._sinks.append(TensorBoard(run_dir / "tensorboard", restored_step))
        if logging.wandb_project:
            self._sinks.append(WandB(logging.wandb_project, name, truth.run_id, run_dir, config or {}))
        self._progress = Progress(total_tokens, tokens, stream or sys.stderr)
        self._sinks.append(self._progress)

    def log(self, step: int, tokens: int, values: Mapping[str, Any]) -> None:
        """Records `values` (numbers by metric name) after `step` steps and `tokens` tokens of the run.

        May be called several times for a step: what it says adds up.
        """
        if self._sinks:
            numbers = {metric: _plain(value) for metric, value in values.items()}
            record = {"step": step, "tokens": tokens, **numbers}
            for sink in self._sinks:
                sink.log(record)

    def say(self, line: str) -> None:
        """Shows a line among the progress, such as what was saved."""
        if self._progress is not None:
            self._progress.say(line)

    def close(self) -> None:
        """Closes all sinks."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []


def check(logging: Logging) -> None:
    """Looks whether what the recipe asks for is installed; callable before any process group starts.

    Raises:
        UserError: it is not.
    """
    asked = {
        "tensorboard": ("tensorboard", logging.tensorboard),
        "wandb": ("wandb_project", logging.wandb_project),
    }
    for module, (option, value) in asked.items():
        if value and importlib.util.find_spec(module) is None:
            mend = f"pip install {module}, or leave logging.{option} out"
            raise UserError(f"needs the package {module}", field=f"logging.{option}", value=value, mend=mend)


def _plain(value: Any) -> float | int:
    """A Python number with all of its digits, from one of Python, numpy or torch."""
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, (int, float)) else float(plain)


class Jsonl:
    """The truth: appended to line by line, at full precision, never rewritten."""

    def __init__(
        self, run_dir: Path, restored_step: int | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        path = run_dir / FILE
        run_dir.mkdir(parents=True, exist_ok=True)
        earlier: list[Attempt] = []
        if path.exists():
            _drop_torn_line(path)
            earlier = attempts(run_dir)
        self.run_id = earlier[-1].run_id if earlier else uuid.uuid4().hex
        self._number = len(earlier) + 1
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        start = {"number": self._number, "restored_step": restored_step}
        self._write({**start, "time": self._clock(), "run_id": self.run_id})

    def log(self, record: Record) -> None:
        """Appends one line, which survives a kill from here on.

        Raises:
            OSError: the disk is full; the line is written with the next one that it takes.
        """
        self._write({"attempt": self._number, "time": self._clock(), **record})

    def close(self) -> None:
        """Makes it survive a power cut, too."""
        with self._file:
            self._flush()
            os.fsync(self._file.fileno())

    def _write(self, record: Record) -> None:
        writable = {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in record.items()
        }
        self._unwritten += json.dumps(writable, allow_nan=False).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        """What a full disk did not take is kept, and goes first as soon as there is room."""
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def _drop_torn_line(path: Path) -> None:
    """A kill in the middle of a write leaves half a line, to which the next record must not be joined."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


class TensorBoard:
    """Event files; steps that a restore undid are hidden by TensorBoard's own `purge_step`."""

    def __init__(self, directory: Path, restored_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = 0 if restored_step is None else restored_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def log(self, record: Record) -> None:
        """Adds a scalar per metric."""
        for metric, value in record.items():
            if metric != "step":
                self._writer.add_scalar(metric, value, record["step"])

    def close(self) -> None:
        """Flushes the event file."""
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
        """Sends one record."""
        self._run.log(dict(record))

    def close(self) -> None:
        """Ends the W&B run."""
        self._run.finish()
