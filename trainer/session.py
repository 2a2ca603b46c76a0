"""What the loop works with in one phase: the position, and what is done when something is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tokenization.shards import TokenStore
from trainer import distributed
from trainer.checkpoint.commit import VERSION, Manifest, name_of
from trainer.checkpoint.save import Saver
from trainer.engine import Engine, StepResult
from trainer.errors import InfrastructureError
from trainer.evaluation import Baseline, evaluate, measured_on
from trainer.health import NonFinite, Signals, Spikes, Watchdog
from trainer.metrics import Metrics, Throughput
from trainer.mixer.loader import Loader
from trainer.mixer.mixture import Mixture
from trainer.model.directory import write_config
from trainer.recipe import Recipe, dump
from trainer.scheduler.state import RunState


@dataclass
class Session:
    """One phase under way on this rank."""

    recipe: Recipe
    state: RunState
    mixture: Mixture
    engine: Engine
    loader: Loader
    validation: Mapping[str, TokenStore]
    """`upstream`, `downstream`."""
    model_config: Mapping[str, Any]
    """Fields of the Hugging Face config."""
    micro_batch_size: int
    saver: Saver
    metrics: Metrics
    throughput: Throughput
    signals: Signals
    watchdog: Watchdog
    non_finite: NonFinite
    spikes: Spikes
    say: Callable[[str], None]
    versions: dict[str, str]
    generation: Mapping[str, Any] | None = None
    """The base's `generation_config.json`, which an export hands on."""
    baseline: dict[str, Baseline] = field(default_factory=dict)
    """Of each validation set that was scored before the first step."""
    tokens_before: int = 0
    """Tokens that the run had consumed before the last step."""
    saved_step: int = -1
    """The step of the last save, be it still under way; -1 once it has failed."""
    blocked_s: float = 0.0
    """For how long the last save has kept the training waiting."""
    unrecorded: bool = False
    """Whether metrics wait for room on the disk."""
    noted: dict[str, Any] = field(default_factory=dict)
    """Metrics that wait for the next line of the log."""
    sums: torch.Tensor | None = None
    """[2, sources]: nats and target tokens of each source since the last line of the log."""

    def __post_init__(self) -> None:
        """A step may change nothing that a save is still copying."""
        self.engine.before_change = self._let_change

    def _let_change(self) -> None:
        started = time.perf_counter()
        with self.throughput.paused():
            self.saver.let_change()
        self.blocked_s += time.perf_counter() - started

    def due(self, every_tokens: int) -> bool:
        """Whether the last step crossed a multiple of `every_tokens`: the same after any resume."""
        return self.tokens_before // every_tokens < self.state.tokens // every_tokens

    @property
    def out_of_budget(self) -> bool:
        """Whether `stop_after` ends the run here."""
        return self.recipe.stop_after is not None and self.state.tokens >= self.recipe.stop_after

    def advance(self, lr: float, result: StepResult) -> None:
        """Counts the step: its samples are used up in any case, the LR's clock moves if it was applied."""
        self.tokens_before = self.state.tokens
        self.state = self.state.after_step(self.recipe.global_batch_size, lr=lr, trained=result.applied)
        self.throughput.step(self.state.tokens - self.tokens_before, self.loader.wait_s)
        step = torch.stack([result.source_nats, result.source_targets])
        self.sums = step if self.sums is None else self.sums + step
        self.noted |= {
            "lr": lr,
            "grad_norm": result.grad_norm,
            "data/samples_crc32": self.loader.samples_crc32,
        }
        self.non_finite.seen(self.state.step, result.applied)
        if not result.applied:
            self.noted["tokens/skipped"] = self.state.tokens - self.state.trained_tokens
            self.say(f"step {self.state.step}: gradients were not finite; nothing was changed, the LR waits")
        self.watchdog.beat(f"step {self.state.step + 1}")

    def evaluate(self) -> None:
        """Scores the validation sets; those before the first step are what forgetting is measured against."""
        seq_len, max_tokens = self.recipe.seq_len, self.recipe.validation.max_tokens
        with self.throughput.paused():
            for name, store in self.validation.items():
                score = evaluate(
                    self.engine,
                    store,
                    seq_len=seq_len,
                    micro_batch_size=self.micro_batch_size,
                    max_tokens=max_tokens,
                    rank=self.saver.rank,
                    world_size=self.saver.world_size,
                    total=distributed.total,
                )
                now = measured_on(store, seq_len, max_tokens)
                if self.state.step == 0:
                    self.baseline[name] = Baseline(score.bits_per_byte, now)
                base = self.baseline.get(name)
                self.noted[f"eval/{name}/bits_per_byte"] = score.bits_per_byte
                self.noted[f"eval/{name}/nats_per_token"] = score.nats_per_token
                if name == "upstream" and base is not None and not base.unlike(now):
                    self.noted["eval/upstream/forgetting"] = score.bits_per_byte - base.bits_per_byte

    def log(self) -> None:
        """Writes a line of metrics when one is due, or when something other than the step is to be told."""
        evaluated = any(name.startswith("eval/") for name in self.noted)
        if self.state.step % self.recipe.logging.every_steps and not evaluated:
            return
        if self.sums is not None:
            nats, targets = self.sums.tolist()
            consumed = self.mixture.consumed(self.state.phase, self.state.samples)
            self.noted["loss/train"] = sum(nats) / sum(targets)
            for number, name in enumerate(self.mixture.names):
                self.noted[f"tokens/{name}"] = consumed[name] * self.recipe.seq_len
                self.noted[f"epochs/{name}"] = consumed[name] / self.mixture.sizes[number].samples
                if targets[number]:
                    self.noted[f"loss/{name}"] = nats[number] / targets[number]
            self.noted |= self.throughput.read()
            if (height := self.spikes.seen(self.noted["loss/train"])) is not None:
                self.say(f"step {self.state.step}: loss/train is {height:.0f} deviations too high")
        self._record(self.noted)
        self.noted, self.sums = {}, None

    def _record(self, values: Mapping[str, Any]) -> None:
        """Writes metrics; a disk that takes none is answered as one that takes no checkpoint."""
        try:
            self.metrics.log(self.state.step, self.state.tokens, values)
            self.unrecorded = False
        except OSError as error:
            why = f"step {self.state.step} cannot be recorded: {error.strerror or error}"
            if self.recipe.checkpoint.on_failure == "stop":
                raise InfrastructureError(f"{why}; {self.saver.last_good()}") from error
            if not self.unrecorded:
                self.say(f"{why}; metrics wait in memory for room on the disk")
            self.unrecorded = True

    def save(self) -> None:
        """Commits the run as it stands, once per step.

        Raises:
            InfrastructureError: the save failed and `checkpoint.on_failure` is `stop`.
        """
        if self.saved_step == self.state.step:
            return
        self.watchdog.beat(f"saving step {self.state.step}")
        self.finish_save()
        started = time.perf_counter()
        with self.throughput.paused():
            self._save()
        self.blocked_s = time.perf_counter() - started
        if not self.saver.asynchronous:
            self.finish_save()

    def _save(self) -> None:
        failure = None
        if self.saver.rank == 0:
            try:
                self.saver.prepare(self.state.step, self.engine.saved_bytes)
                # With it a checkpoint may be another run's base, wherever this run's base has gone.
                directory = self.saver.directory / name_of(self.state.step)
                write_config(self.model_config, directory, self.generation)
            except (InfrastructureError, OSError) as error:
                failure = str(error)
        failure = distributed.from_rank0(failure)
        if failure is not None:
            self._answer(self.state.step, failure)
            return
        self.saved_step = self.state.step
        shares = ([own for own in share if own.owned] for share in self.engine.shares())
        self.saver.save(self._manifest(), shares)

    def finish_save(self) -> None:
        """Waits for the save under way on every rank; a failure is answered as the recipe says.

        Raises:
            InfrastructureError: it failed and `checkpoint.on_failure` is `stop`.
        """
        if not self.saver.under_way:
            return
        started = time.perf_counter()
        with self.throughput.paused():
            failures = [line for line in distributed.from_all(self.saver.wait()) if line]
        self.blocked_s += time.perf_counter() - started
        self.noted |= {"perf/save_s": self.saver.save_s, "perf/save_blocked_s": self.blocked_s}
        if failures:
            failed, self.saved_step = self.saved_step, -1
            self._answer(failed, failures[0])

    def close(self) -> None:
        """Ends the phase: its last step is committed, and what the next phase opens anew is given back.

        Raises:
            InfrastructureError: it is not committed; going on would do steps twice.
        """
        self.finish_save()
        if self.saved_step != self.state.step:
            raise InfrastructureError(
                f"the run ends unsaved at step {self.state.step}, see above; {self.saver.last_good()}; "
                "the same command goes on from there"
            )
        if told := {name: value for name, value in self.noted.items() if name.startswith("perf/save")}:
            self._record(told)
        self.loader.close()
        self.engine.close()

    def _manifest(self) -> Manifest:
        return Manifest(
            version=VERSION,
            step=self.state.step,
            tokens=self.state.tokens,
            world_size=self.engine.world_size,
            stage=self.engine.stage,
            files={},
            weights={},
            adam_step=self.engine.adam_step,
            loss_scale=self.engine.loss_scale,
            state=self.state.to_json(),
            baseline={name: asdict(base) for name, base in self.baseline.items()},
            recipe=dump(self.recipe),
            versions=self.versions,
        )

    def _answer(self, step: int, failure: str) -> None:
        line = f"step {step} was not saved: {failure}; {self.saver.last_good()}"
        if self.recipe.checkpoint.on_failure == "stop":
            raise InfrastructureError(line)
        self.say(line)
