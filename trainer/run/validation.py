"""The validation sets of a phase, and forgetting: what upstream lost since the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from tokenization.shards.store import TokenStore
from trainer.evaluation.held_out import Baseline, Scorer, evaluate, measured_on
from trainer.evaluation.paired import Documents, PerDocument, score_documents
from trainer.machine import collectives
from trainer.machine.ranks import World
from trainer.metrics import names
from trainer.metrics.jsonl import history_of, read_attempts
from trainer.mixer.batch import MicroBatch
from trainer.plan.make import Plan
from trainer.recipe.schema import Recipe

STOP_EVERY = 4
"""Batches between two looks whether a rank was asked to stop, which cost a small all-reduce."""


def validation_is_missing(plan: Plan, world: World) -> bool:
    """Tell whether the position that a start goes on from is still to be scored: the same on every rank.

    That of the first start always is, and one whose validation gave way to a stop: where one was due, and at
    the end of a phase.
    """
    state, every = plan.decision.state, plan.recipe.validation.every_tokens
    before = state.tokens - plan.recipe.tokens_per_step
    at_an_end = plan.decision.kind == "new_phase" or state.phase_done
    if state.step == 0 or not (plan.validation and (at_an_end or before // every < state.tokens // every)):
        return state.step == 0 and bool(plan.validation)
    name = names.stream_bits_per_byte(next(iter(plan.validation)))
    scored = world.rank == 0 and any(
        record["step"] == state.step and name in record
        for record in history_of(
            read_attempts(plan.recipe.directory, say=lambda line: None)  # its torn lines have been named
        )
    )
    return not collectives.broadcast(scored)


class _Stopped(Exception):
    """Any rank was asked to stop; raised on every rank after the same batch."""


@dataclass
class ValidationSets:
    """Scores the validation sets with the model as it stands."""

    scorer: Scorer
    stores: Mapping[str, TokenStore]
    """`upstream`, `downstream`."""
    recipe: Recipe
    micro_batch_size: int
    world: World
    baseline: dict[str, Baseline] = field(default_factory=dict)
    """The base's score on each validation set that was measured before the first step."""
    total: Callable[[torch.Tensor], torch.Tensor] = collectives.all_reduce_sum
    """Adds up over the ranks."""
    stop_requested: Callable[[], bool] = lambda: False
    """Whether this rank was asked to stop."""
    progress: Callable[[str], None] = lambda doing: None
    """Called every few batches with what is being done."""

    def measure(self, step: int) -> dict[str, float] | None:
        """The metrics of all sets after `step` steps, or None if a rank was asked to stop meanwhile.

        Those of step 0 become the baseline.
        """
        try:
            return self._measure(step)
        except _Stopped:
            return None

    def score_documents(
        self, documents: Documents, doing: str, *, stoppable: bool = True
    ) -> PerDocument | None:
        """Score documents, nats each; None if it is `stoppable` and a rank was asked to stop meanwhile."""
        try:
            return score_documents(
                _StoppableScorer(self, doing) if stoppable else self.scorer,
                documents,
                micro_batch_size=self.micro_batch_size,
                rank=self.world.rank,
                world_size=self.world.world_size,
                total=self.total,
            )
        except _Stopped:
            return None

    def _measure(self, step: int) -> dict[str, float]:
        seq_len, max_tokens = self.recipe.seq_len, self.recipe.validation.max_tokens
        found = {}
        for name, store in self.stores.items():
            score = evaluate(
                _StoppableScorer(self, f"validating {name} after step {step}"),
                store,
                seq_len=seq_len,
                micro_batch_size=self.micro_batch_size,
                max_tokens=max_tokens,
                document_mask=self.recipe.document_mask,
                rank=self.world.rank,
                world_size=self.world.world_size,
                total=self.total,
            )
            now = measured_on(store, seq_len, max_tokens, self.recipe.document_mask)
            if step == 0:
                self.baseline[name] = Baseline(score.bits_per_byte, now)
            base = self.baseline.get(name)
            found[names.stream_bits_per_byte(name)] = score.bits_per_byte
            found[names.stream_nats_per_token(name)] = score.nats_per_token
            if name in names.FORGETTINGS and base is not None and not base.unlike(now):
                found[names.FORGETTINGS[name]] = score.bits_per_byte - base.bits_per_byte
        return found


class _StoppableScorer:
    """Scores batch after batch until any rank was asked to stop; all ranks score equally many batches."""

    def __init__(self, sets: ValidationSets, doing: str) -> None:
        self._sets, self._doing, self._batches = sets, doing, 0

    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Score a batch; see `Scorer`."""
        if self._batches % STOP_EVERY == 0:
            self._sets.progress(self._doing)
            if float(self._sets.total(torch.tensor([float(self._sets.stop_requested())]))[0]) > 0:
                raise _Stopped
        self._batches += 1
        return self._sets.scorer.score(micro)
