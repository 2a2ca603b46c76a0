"""The step log: collects the metrics of each step and writes a line of them when one is due."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tokenization.errors import InfrastructureError
from trainer.engine.result import StepResult
from trainer.machine.garbage import collect_garbage
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.metrics.log import Metrics
from trainer.metrics.slow_ranks import SlowRanks
from trainer.metrics.throughput import Throughput
from trainer.mixer.mixture import Mixture
from trainer.recipe.schema import Recipe
from trainer.scheduler.state import RunState


class StepLog:
    """The metrics of one phase on their way to the run's record."""

    def __init__(
        self,
        metrics: Metrics,
        recipe: Recipe,
        mixture: Mixture,
        throughput: Throughput,
        last_good: Callable[[], str],
        hosts: Sequence[str] = ("",),
    ) -> None:
        """`last_good` says which checkpoint a restart would use, for the error that ends a run.

        `hosts` are those of the ranks.
        """
        self._ranks = SlowRanks(hosts)
        self._metrics, self._recipe, self._mixture = metrics, recipe, mixture
        self._throughput, self._last_good = throughput, last_good
        self.pending: dict[str, Any] = {}
        """Metrics for the next line, by name."""
        self.source_sums: torch.Tensor | None = None
        """[2, sources]: nats and target tokens of each source since the last line."""
        self._evaluated = False
        self._disk_full = False

    def add_step(self, state: RunState, result: StepResult, samples_crc32: int) -> None:
        """Collect what a step did; `state` is the position after it."""
        self._ranks.add(result.rank_seconds)
        step = torch.stack([result.source_nats, result.source_targets])
        self.source_sums = step if self.source_sums is None else self.source_sums + step
        self.pending |= {
            names.LR: state.lr,
            names.GRAD_NORM: result.grad_norm,
            names.SAMPLES_CRC32: samples_crc32,
        }
        if not result.applied:
            self.add_skipped(state)

    def add_skipped(self, state: RunState) -> None:
        """Collect that a step trained nothing; `state` is the position after it."""
        self.pending[names.SKIPPED_TOKENS] = state.tokens - state.trained_tokens

    def add_evaluation(self, scores: Mapping[str, float]) -> None:
        """Collect the scores of the validation sets; a line is due then."""
        self.pending |= scores
        self._evaluated |= bool(scores)

    def follow(self, mixture: Mixture) -> None:
        """Count what is drawn by another mixture of the same sources from now on."""
        self._mixture = mixture

    def write_if_due(self, state: RunState) -> None:
        """Write a line every `logging.every_steps` steps and after each evaluation."""
        if state.step % self._recipe.logging.every_steps == 0 or self._evaluated:
            self.write(state)

    def write(self, state: RunState) -> None:
        """Write a line of what has been collected since the last one."""
        if self.source_sums is not None:
            self.pending |= self._training_metrics(state, self.source_sums)
        self._record(state, self.pending)
        self.pending, self.source_sums, self._evaluated = {}, None, False
        collect_garbage()

    def flush(self) -> None:
        """Make what is written outlive a kill; a disk that cannot has been noticed at the line itself."""
        with contextlib.suppress(OSError):
            self._metrics.flush()

    def close(self, state: RunState) -> None:
        """Write how long the last save took: it ended after the last line."""
        if saved := {name: self.pending[name] for name in names.OF_SAVES if name in self.pending}:
            self._record(state, saved)

    def _training_metrics(self, state: RunState, sums: torch.Tensor) -> dict[str, float]:
        """Losses and consumption since the last line, in all and of each source, and the throughput."""
        nats, targets = sums.tolist()
        drawn = self._mixture.drawn(state.phase, state.samples)
        epochs = self._mixture.epochs(state.phase, state.samples)
        loss = sum(nats) / sum(targets)
        found = {names.LOSS: loss}
        for number, name in enumerate(self._mixture.names):
            found[names.source_tokens(name)] = drawn[name][1]
            found[names.source_epochs(name)] = epochs[name]
            if targets[number]:
                found[names.source_loss(name)] = nats[number] / targets[number]
        spread, line = self._ranks.read()
        if line is not None:
            logger.warning(f"step {state.step}: {line}")
        return found | spread | self._throughput.read()

    def _record(self, state: RunState, values: Mapping[str, Any]) -> None:
        """Write metrics; a disk that refuses them is treated as one that refuses a checkpoint."""
        try:
            self._metrics.log(state.step, state.tokens, values)
            self._disk_full = False
        except OSError as error:
            why = f"step {state.step} cannot be recorded: {error.strerror or error}"
            if self._recipe.checkpoint.on_failure == "stop":
                raise InfrastructureError(f"{why}; {self._last_good()}") from error
            if not self._disk_full:
                logger.warning(f"{why}; keeping metrics in memory until the disk accepts them")
            self._disk_full = True
