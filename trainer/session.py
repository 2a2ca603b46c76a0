"""What the loop works with in one phase: the position, and what is done when something is due."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from tokenization.shards import TokenStore
from trainer import distributed
from trainer.checkpoint.commit import Manifest, Saver, scan
from trainer.engine import Engine, StepResult
from trainer.errors import InfrastructureError
from trainer.evaluation import evaluate
from trainer.health import Signals
from trainer.metrics import Metrics
from trainer.mixer.loader import Loader
from trainer.mixer.mixture import Mixture
from trainer.recipe import Phase, Recipe
from trainer.scheduler.curves import Curve
from trainer.scheduler.state import RunState


@dataclass
class Session:
    """One phase under way on this rank."""

    recipe: Recipe
    state: RunState
    curve: Curve
    mixture: Mixture
    engine: Engine
    loader: Loader
    validation: Mapping[str, TokenStore]
    """`upstream`, `downstream`."""
    micro_batch_size: int
    saver: Saver
    metrics: Metrics
    signals: Signals
    manifest: Callable[[Session], Manifest]
    """What a checkpoint of this moment says of itself."""
    baseline: dict[str, float] = field(default_factory=dict)
    """bits_per_byte of the base, measured before the first step."""
    before: int = 0
    """Tokens that the run had consumed before the last step."""
    saved_step: int = -1
    watched: dict[str, float] = field(default_factory=dict)
    """The newest validation metrics, not yet logged."""

    @property
    def phase(self) -> Phase:
        """The phase's section of the recipe."""
        return self.recipe.phases[self.state.phase]

    @property
    def phase_done(self) -> bool:
        """Whether the phase's tokens are used."""
        return self.state.samples * self.recipe.seq_len >= self.phase.length

    @property
    def out_of_budget(self) -> bool:
        """Whether `stop_after` ends the run here."""
        return self.recipe.stop_after is not None and self.state.tokens >= self.recipe.stop_after

    def due(self, every_tokens: int) -> bool:
        """Whether the last step crossed a multiple of `every_tokens`: the same after any resume."""
        return self.before // every_tokens < self.state.tokens // every_tokens

    def advance(self, lr: float, result: StepResult) -> None:
        """Counts the step: its samples are used up in any case, the LR's clock moves if it was applied."""
        state = self.state
        tokens = self.recipe.tokens_per_step
        trained = tokens if result.applied else 0
        self.before = state.tokens
        self.state = replace(
            state,
            samples=state.samples + self.recipe.global_batch_size,
            tokens=state.tokens + tokens,
            phase_trained_tokens=state.phase_trained_tokens + trained,
            trained_tokens=state.trained_tokens + trained,
            step=state.step + 1,
            lr=lr,
        )

    def evaluate(self) -> None:
        """Scores both validation sets; what was not measured before the first step has no forgetting."""
        for name, store in self.validation.items():
            score = evaluate(
                self.engine,
                store,
                seq_len=self.recipe.seq_len,
                micro_batch_size=self.micro_batch_size,
                max_tokens=self.recipe.validation.max_tokens,
            )
            base = self.baseline.setdefault(name, score.bits_per_byte)
            self.watched[f"eval/{name}/bits_per_byte"] = score.bits_per_byte
            self.watched[f"eval/{name}/nats_per_token"] = score.nats_per_token
            if name == "upstream":
                self.watched["eval/upstream/forgetting"] = score.bits_per_byte - base

    def log(self, result: StepResult) -> None:
        """Hands the step's numbers to the metrics; rank 0 writes them."""
        ...

    def save(self) -> None:
        """Commits the run as it stands, once per step.

        Raises:
            InfrastructureError: the save failed and `checkpoint.on_failure` is `stop`.
        """
        if self.saved_step == self.state.step:
            return
        self.finish_save()
        self.saved_step = self.state.step
        fragments = [fragment for fragment in self.engine.fragments() if fragment.owned]
        needed = sum(t.numel() * t.element_size() for f in fragments for t in f.tensors.values())
        needed = int(distributed.total(torch.tensor([float(needed)], dtype=torch.float64)))
        failure = None
        if self.saver.rank == 0:
            try:
                self.saver.prepare(self.state.step, needed)
            except (InfrastructureError, OSError) as error:
                failure = str(error)
        failure = distributed.from_rank0(failure)
        if failure is None:
            self.saver.save(self.manifest(self), fragments)
        self._answer(failure)
        if not self.saver.asynchronous:
            self.finish_save()

    def finish_save(self) -> None:
        """Waits for the save under way on every rank, and answers its failure as the recipe says."""
        failures = [line for line in distributed.from_all(self.saver.wait()) if line]
        self._answer(failures[0] if failures else None)

    def _answer(self, failure: str | None) -> None:
        if failure is None:
            return
        good, _ = scan(self.saver.directory)
        last = good[-1].path if good else "none"
        line = f"step {self.state.step} was not saved: {failure}; last good checkpoint: {last}"
        if self.recipe.checkpoint.on_failure == "stop":
            raise InfrastructureError(line)
        self.metrics.say(line)
