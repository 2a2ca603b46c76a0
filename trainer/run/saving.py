"""The saves of a phase: one at a time, each step once, and failures handled as the recipe says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from tokenization.errors import InfrastructureError, RewarmError, UserError
from trainer.checkpoint.history import name_of
from trainer.checkpoint.manifest import Position
from trainer.checkpoint.save import NotFinite, Saver
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.metrics.throughput import Throughput
from trainer.run.step_log import StepLog
from trainer.storage.fragment import Fragment
from trainer.storage.hub import write_model_config


class Saves:
    """Begins and ends saves; all ranks make the same calls in the same order."""

    def __init__(
        self,
        saver: Saver,
        step_log: StepLog,
        throughput: Throughput,
        *,
        on_failure: Literal["stop", "continue"],
        model_config: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        saved_step: int = -1,
        shown: Callable[[], AbstractContextManager[None]] = nullcontext,
        committed: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """`model_config` and `generation` are written beside the weights; `saved_step` is already committed.

        While `shown()` is entered, the training waits for a save. `committed` is called with each checkpoint.

        They hold the fields of config.json and of generation_config.json, of which a base may have none.
        """
        self._saver, self._step_log, self._throughput = saver, step_log, throughput
        self._on_failure, self._model_config, self._generation = on_failure, model_config, generation
        self._shown, self._committed = shown, committed
        self.saved_step = saved_step
        """Step of the last save, which may still be under way; -1 once it has failed."""
        self.blocked_s = 0.0
        """How long the last save has kept the training waiting."""

    def save(self, position: Position, shares: Iterable[Sequence[Fragment]], needed: int) -> None:
        """Begin the save of a step unless that step is saved; the save before it is waited for.

        Of `shares`, of which each becomes a file, the fragments
        that this rank owns are written. All ranks together need `needed` bytes of the disk.

        Raises:
            InfrastructureError: this save or the one before it failed, and `on_failure` is `stop`.
        """
        step = position.step
        if self.saved_step == step:
            return
        self.finish_save()
        started = time.perf_counter()
        with self._throughput.paused(), self._shown():
            self._step_log.flush()
            failure = self._open_directory(step, needed)
            if failure is None:
                self.saved_step = step
                self._saver.save(position, ([own for own in share if own.owned] for share in shares))
        self.blocked_s = time.perf_counter() - started
        if failure is not None:
            self._on_save_failure(step, failure)
        elif not self._saver.asynchronous:
            self.finish_save()

    def finish_save(self) -> None:
        """Wait on every rank for the save under way, if there is one.

        Raises:
            InfrastructureError: it failed and `on_failure` is `stop`.
        """
        if not self._saver.under_way:
            return
        started = time.perf_counter()
        with self._throughput.paused(), self._shown():
            # No save is under way after `wait`, so that nothing else uses the saver's group.
            failures = [line for line in self._saver.gather(self._saver.wait()) if line]
        self.blocked_s += time.perf_counter() - started
        self._step_log.pending |= {names.SAVE_S: self._saver.save_s, names.SAVE_BLOCKED_S: self.blocked_s}
        if failures:
            failed, self.saved_step = self.saved_step, -1
            self._on_save_failure(failed, failures[0])
        else:
            self._committed(self._saver.directory / name_of(self.saved_step))

    def wait_for_snapshot(self) -> None:
        """Wait until the save under way has copied what it saves; weights and moments may change then."""
        started = time.perf_counter()
        with self._throughput.paused():
            self._saver.wait_for_snapshot()
        self.blocked_s += time.perf_counter() - started

    def last_good(self) -> str:
        """Say which checkpoint a restart would use."""
        return self._saver.last_good()

    def close(self, step: int) -> None:
        """Wait for the last save, which must be that of `step`.

        Raises:
            InfrastructureError: `step` is not committed; going on would train steps twice.
        """
        self.finish_save()
        if self.saved_step != step:
            raise InfrastructureError(
                f"the run ends unsaved at step {step}, see above; {self._saver.last_good()}; "
                "the same command goes on from there"
            )

    def _open_directory(self, step: int, needed: int) -> str | None:
        """Make the checkpoint's directory on rank 0; the reason why that failed, or None, on every rank."""
        failure = None
        if self._saver.rank == 0:
            try:
                self._saver.open_directory(step, needed)
                # With it a checkpoint may be another run's base, wherever this run's base has gone.
                write_model_config(
                    self._model_config, self._saver.directory / name_of(step), self._generation
                )
            except (RewarmError, OSError) as error:
                failure = str(error)
        failure_on_rank0: str | None = self._saver.gather(failure)[0]
        return failure_on_rank0

    def _on_save_failure(self, step: int, failure: str) -> None:
        line = f"step {step} was not saved: {failure}; {self._saver.last_good()}"
        if isinstance(failure, NotFinite):
            fix = "start another run_dir with that checkpoint as model.base, and a lower max_lr"
            raise UserError(line, fix=fix)
        if self._on_failure == "stop":
            raise InfrastructureError(line)
        logger.warning(line)
