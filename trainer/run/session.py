"""The state of one phase: the position in the run, and what is due there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

from trainer.checkpoint.manifest import Position
from trainer.engine.engine import Engine
from trainer.engine.result import StepResult
from trainer.machine.log_lines import logger
from trainer.machine.profile import StepProfile
from trainer.machine.signals import Signals
from trainer.machine.watchdog import Watchdog
from trainer.metrics import names
from trainer.metrics.throughput import Throughput
from trainer.mixer.description import PassedOver
from trainer.mixer.loader import Loader
from trainer.mixer.permutation import key_of
from trainer.recipe.load import dump_recipe
from trainer.recipe.schema import Recipe
from trainer.run.health import Spike, Vitals
from trainer.run.probe import Prompts
from trainer.run.saving import Saves
from trainer.run.steering import Steering
from trainer.run.step_log import StepLog
from trainer.run.tasks import TaskEvaluation
from trainer.run.validation import ValidationSets
from trainer.scheduler.state import RunState


@dataclass(frozen=True)
class _Unsettled:
    """A step that the device may still be computing."""

    result: StepResult
    samples_crc32: int


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
    profile: StepProfile
    versions: dict[str, str]
    """Package to version."""
    steering: Steering | None = None
    """The forgetting budget, if a phase of the run has one."""
    tokens_before: int = 0
    """Tokens that the run had consumed before the last step."""
    stop_agreed: bool = False
    """Whether any rank was asked to stop: all ranks see it after the same step."""
    prompts: Prompts | None = None
    """What is continued at each validation."""
    tasks: TaskEvaluation | None = None
    """What is answered every `tasks_every` tokens."""
    spike: Spike | None = None
    """What the run must go back for."""
    over_budget: dict[str, Any] | None = None
    """The decision that ends the run, since the forgetting budget cannot be held."""
    _unsettled: _Unsettled | None = None
    _lr: float = 0.0

    def __post_init__(self) -> None:
        """A step may change nothing that a save is still copying."""
        self.engine.before_update = self.saves.wait_for_snapshot
        self.vitals = Vitals(self.recipe.health, self.state.vitals, self.saves.last_good)
        self._safe_samples = self.state.samples
        """Samples of the phase that the last checkpoint has behind it."""

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

    @property
    def something_due(self) -> bool:
        """Whether the last step must be known before the run goes on: the same on every rank."""
        recipe = self.recipe
        return (
            self.stop_agreed
            or self.out_of_budget
            or self.state.phase_done
            or self.state.step % recipe.logging.every_steps == 0
            or self.due(recipe.validate_every)
            or self.due(recipe.save_every)
            or self.decision_due
            or self.tasks_due
        )

    @property
    def tasks_due(self) -> bool:
        """Whether tasks are to be answered here: the same on every rank, and after any resume."""
        return self.tasks is not None and (self.due(self.recipe.tasks_every) or self.state.phase_done)

    @property
    def decision_due(self) -> bool:
        """Whether the replay is to be decided here: the same on every rank, and after any resume."""
        return self.steering is not None and self.steering.due(self.state)

    @property
    def _batch(self) -> int:
        """Samples of a step of this phase."""
        return self.recipe.batch_of(self.state.phase)

    @property
    def leaves_out(self) -> bool:
        """Whether the next batch is passed over, for a spike that it has made before."""
        return self.state.leaves_out(self._batch)

    def pass_over(self) -> None:
        """Count the next batch as consumed and not trained."""
        self.settle()
        self.tokens_before = self.state.tokens
        self.state = replace(
            self.state.after_step(self._batch, lr=self.state.next_lr, trained=False),
            lr=self.state.lr,
        )
        self.step_log.add_skipped(self.state)
        self.vitals.pass_over(self.state.step)

    def train_step(self) -> None:
        """Make a step, as far as the host has a part in it; the device may still be at the step before.

        Its samples are consumed in any case. What else came of it is known once it is settled.
        """
        state = self.state
        result = self.engine.train_step(
            self.loader.step(state.phase, state.samples, self._batch),
            self._next_lr,
            sources=len(self.recipe.sources),
            seed=key_of("step", self.recipe.seed, state.step),
            stop=self.signals.stop_requested,
            limits=lambda: self.vitals.limits,
        )
        self.engine.own_time.add(self.loader.wait_s)
        self._unsettled = _Unsettled(result, self.loader.samples_crc32)
        self.tokens_before = self.state.tokens
        self.state = self.state.after_step(self._batch, lr=self._lr)
        self.throughput.step(self.state.tokens - self.tokens_before, self.loader.wait_s)
        self.profile.step()
        self._beat()

    def _beat(self) -> None:
        self.watchdog.beat(f"step {self.state.step + 1}", stepping=True)

    def settle(self) -> None:
        """Wait for the last step and count what came of it: the schedule advances if it was applied.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        step, self._unsettled = self._unsettled, None
        if step is None:
            return
        result = step.result
        self.stop_agreed |= result.stop
        if not result.applied:
            self.state = self.state.last_step_skipped(self._batch)
        elif self.recipe.model.average is not None:
            trained = self.state.phase_trained_tokens
            share = self.recipe.model.average.share_of_step(trained, self.recipe.tokens_per_step)
            self.engine.add_to_average(share)
        self.step_log.add_step(self.state, result, step.samples_crc32)
        calls = self.vitals.judge(self.state.step, result.loss, result.grad_norm, result.applied)
        if calls and self.spike is None:
            metric, what = calls[0]
            # The loss shows what the update before has done as well.
            self.spike = Spike(self.state.step, what, self._last_samples(2 if metric == names.LOSS else 1))

    def _last_samples(self, steps: int) -> PassedOver:
        """Return the samples of the last `steps` steps, as far as they came after the last checkpoint."""
        start = self.state.samples - steps * self._batch
        return PassedOver(self.state.phase, max(start, self._safe_samples), self.state.samples)

    def _next_lr(self) -> float:
        """LR of the step that the device is about to make, which depends on what came of the one before."""
        self.settle()
        self._lr = self.state.next_lr
        return self._lr

    def evaluate(self) -> bool:
        """Score the validation sets; the scores go into the step's metrics.

        Returns whether it came to its end: a signal cuts it short, so that the steps are saved in time.
        """
        self.settle()
        scores = self._with_average(lambda: self.validation.measure(self.state.step))
        if scores is None:
            return self._cut_short("the validation was")
        self.step_log.add_evaluation(scores)
        if self.prompts is not None:
            with self.throughput.paused():
                self.prompts.show(self.engine, self.state.step, self.state.tokens)
        self._beat()
        return True

    def evaluate_tasks(self) -> bool:
        """Answer the tasks; the numbers go into the step's metrics. Returns whether it came to its end."""
        self.settle()
        assert self.tasks is not None
        tasks = self.tasks
        numbers = self._with_average(lambda: tasks.measure(self.validation, self.state.step))
        if numbers is None:
            return self._cut_short("the tasks were")
        self.step_log.add_evaluation(numbers)
        self._beat()
        return True

    def _with_average(self, measure: Callable[[], dict[str, float] | None]) -> dict[str, float] | None:
        """Measure with the weights, and with their average if the run keeps one.

        Before any step both are the same. None if a signal cut either of them short.
        """
        with self.throughput.paused():
            found = measure()
            if found is None or self.recipe.model.average is None or self.state.step == 0:
                return found
            with self.engine.averaged():
                averaged = measure()
        return (
            None if averaged is None else found | {names.of_average(one): averaged[one] for one in averaged}
        )

    def make_up(self, unscored: bool, unanswered: bool) -> None:
        """Make what a start finds missing where it stands: scores, answers, and a decision that is due.

        Each is written at once. A signal ends the process here, and what is written is not made again.
        """
        if unscored and self.evaluate():
            self.step_log.write_if_due(self.state)
        if unanswered and self.evaluate_tasks():
            self.step_log.write_if_due(self.state)
        if self.decision_due and self.decide_replay():
            self.step_log.write_if_due(self.state)

    def _cut_short(self, what: str) -> bool:
        logger.warning(
            f"step {self.state.step}: {what} cut short by a signal; that is made up for when the run goes on"
        )
        return False

    def decide_replay(self) -> bool:
        """Measure forgetting, decide the replay to come, and do what is declared if it cannot be held.

        Returns whether it came to its end: a signal cuts it short, and it is made up for later.
        """
        self.settle()
        assert self.steering is not None
        began = perf_counter()
        with self.throughput.paused():
            decided = self.steering.decide(self.state)
        if decided is None:
            return False
        took = {names.MEASURE_S: perf_counter() - began}
        self.state, mixture = decided, self.steering.mixture
        self.loader.follow(mixture)
        self.step_log.follow(mixture)
        self.step_log.add_evaluation(self.steering.apply(self.state) | took)
        record = self.state.decisions[-1]
        self.over_budget = record if record["action"] == "stop" else None
        self._beat()
        return True

    def save(self) -> None:
        """Commit the run as it stands, once per step.

        Raises:
            InfrastructureError: a save failed and `checkpoint.on_failure` is `stop`.
        """
        self.settle()
        self.watchdog.beat(f"saving step {self.state.step}", saving=True)
        self.saves.save(self._position(), self.engine.shares(), self.engine.saved_bytes)
        self._safe_samples = self.state.samples
        self._beat()

    def close(self) -> None:
        """End the phase: its last step is committed, and the memory is free for the next phase.

        Raises:
            InfrastructureError: the last step is not committed; going on would train steps twice.
        """
        self.saves.close(self.state.step)
        self._close_parts()

    def abandon(self) -> None:
        """End the phase without its last steps: the run goes back to its last checkpoint.

        Raises:
            InfrastructureError: the save under way failed, and `checkpoint.on_failure` is `stop`.
        """
        self.settle()
        self.step_log.write(self.state)
        self.saves.finish_save()
        self._close_parts()

    def _close_parts(self) -> None:
        self.watchdog.beat("ending the phase")
        self.profile.close()
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
            state=replace(self.state, vitals=self.vitals.to_json()).to_json(),
            baseline={name: asdict(base) for name, base in self.validation.baseline.items()},
            recipe=dump_recipe(self.recipe),
            versions=self.versions,
        )
