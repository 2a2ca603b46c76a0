"""The state of one phase: the position in the run, and what is due there."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainer.checkpoint.manifest import Position
from trainer.engine.engine import Engine, StepResult
from trainer.machine.log_lines import logger
from trainer.machine.signals import Signals
from trainer.machine.watchdog import Watchdog
from trainer.metrics.throughput import Throughput
from trainer.mixer.loader import Loader
from trainer.recipe.load import dump_recipe
from trainer.recipe.schema import Recipe
from trainer.run.saving import Saves
from trainer.run.step_log import StepLog
from trainer.run.validation import ValidationSets
from trainer.scheduler.state import RunState


@dataclass
class Session:
    """The phase that runs on this rank."""

    recipe: Recipe
    state: RunState
    engine: Engine
    loader: Loader
    validation: ValidationSets
    step_log: StepLog
    saves: Saves
    throughput: Throughput
    signals: Signals
    watchdog: Watchdog
    versions: dict[str, str]
    """Package to version."""
    tokens_before: int = 0
    """Tokens that the run had consumed before the last step."""

    def __post_init__(self) -> None:
        """A step may change nothing that a save is still copying."""
        self.engine.before_update = self.saves.wait_for_snapshot

    def due(self, every_tokens: int) -> bool:
        """Whether the last step crossed a multiple of `every_tokens`: the same after any resume."""
        return self.tokens_before // every_tokens < self.state.tokens // every_tokens

    @property
    def out_of_budget(self) -> bool:
        """Whether `stop_after` ends the run here."""
        return self.recipe.stop_after is not None and self.state.tokens >= self.recipe.stop_after

    def position(self) -> tuple[int, int]:
        """Steps and tokens of the run so far."""
        return self.state.step, self.state.tokens

    def advance(self, lr: float, result: StepResult) -> None:
        """Count a step: its samples are consumed in any case; the schedule advances if it was applied."""
        self.tokens_before = self.state.tokens
        self.state = self.state.after_step(
            self.recipe.batch_of(self.state.phase), lr=lr, trained=result.applied
        )
        self.throughput.step(self.state.tokens - self.tokens_before, self.loader.wait_s)
        self.step_log.add_step(self.state, result, self.loader.samples_crc32)
        self.watchdog.beat(f"step {self.state.step + 1}")

    def evaluate(self) -> bool:
        """Score the validation sets; the scores go into the step's metrics.

        Returns whether it came to its end: a signal cuts it short, so that the steps are saved in time.
        """
        with self.throughput.paused():
            scores = self.validation.measure(self.state.step)
        if scores is None:
            logger.warning(
                f"step {self.state.step}: the validation was cut short by a signal; it is made up for when "
                "the run goes on"
            )
            return False
        self.step_log.add_evaluation(scores)
        return True

    def save(self) -> None:
        """Commit the run as it stands, once per step.

        Raises:
            InfrastructureError: a save failed and `checkpoint.on_failure` is `stop`.
        """
        self.watchdog.beat(f"saving step {self.state.step}", saving=True)
        self.saves.save(self._position(), self.engine.shares(), self.engine.saved_bytes)

    def close(self) -> None:
        """End the phase: its last step is committed, and the memory is free for the next phase.

        Raises:
            InfrastructureError: the last step is not committed; going on would train steps twice.
        """
        self.saves.close(self.state.step)
        self.step_log.close(self.state)
        self.loader.close()
        self.engine.close()

    def _position(self) -> Position:
        """What the checkpoint records of the run."""
        return Position(
            step=self.state.step,
            tokens=self.state.tokens,
            world_size=self.engine.world_size,
            stage=self.engine.stage,
            adam_step=self.engine.adam_step,
            loss_scale=self.engine.loss_scale,
            state=self.state.to_json(),
            baseline={name: asdict(base) for name, base in self.validation.baseline.items()},
            recipe=dump_recipe(self.recipe),
            versions=self.versions,
        )
