"""The validation sets of a phase, and forgetting: what upstream lost since the first step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenization.shards.store import TokenStore
from tokenization.tokenizer.piece_bytes import ByteClasses
from trainer.evaluation.held_out import Baseline, Scorer, evaluate, measured_on
from trainer.evaluation.means import weighted_mean, with_means
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
    """Tell whether the position that a start goes on from is still to be scored; see `scores_are_missing`."""
    if not plan.validation:
        return False
    name = names.stream_bits_per_byte(next(iter(plan.validation)))
    return scores_are_missing(plan, world, plan.recipe.validate_every, name.__eq__)


def tasks_are_missing(plan: Plan, world: World) -> bool:
    """Tell whether tasks are still to be answered where a start goes on from; see `scores_are_missing`."""
    if plan.recipe.validation.tasks is None:
        return False
    return scores_are_missing(plan, world, plan.recipe.tasks_every, names.is_task_metric)


def scores_are_missing(plan: Plan, world: World, every: int, is_score: Callable[[str], bool]) -> bool:
    """Tell whether the position that a start goes on from has no such score yet: the same on every rank.

    That of the first start has none, and one whose evaluation gave way to a stop: where one was due, which is
    so every `every` tokens and at the end of a phase.
    """
    state = plan.decision.state
    before = state.tokens - plan.recipe.tokens_per_step
    at_an_end = plan.decision.kind == "new_phase" or state.phase_done
    if state.step == 0 or not (at_an_end or before // every < state.tokens // every):
        return state.step == 0
    scored = world.rank == 0 and any(
        record["step"] == state.step and any(map(is_score, record))
        for record in history_of(
            read_attempts(plan.recipe.directory, say=lambda line: None)  # its torn lines have been named
        )
    )
    return not collectives.broadcast(scored)


def measured_on_all(recipe: Recipe, stores: Mapping[str, TokenStore]) -> dict[str, dict[str, Any]]:
    """Return what the scores of each set, and of each role with several, are measured on."""
    own = {
        name: measured_on(store, recipe.seq_len, recipe.validation.max_tokens, recipe.document_mask)
        for name, store in stores.items()
    }
    return with_means(own, recipe.validation.means())


class Stopped(Exception):
    """Any rank was asked to stop; raised on every rank after the same batch."""


@dataclass
class ValidationSets:
    """Scores the validation sets with the model as it stands."""

    scorer: Scorer
    stores: Mapping[str, TokenStore]
    """By the names that they have in metrics: `upstream`, `downstream/zh-law`."""
    recipe: Recipe
    micro_batch_size: int
    world: World
    baseline: dict[str, Baseline] = field(default_factory=dict)
    """The base's score on each validation set that was measured before the first step."""
    total: Callable[[torch.Tensor], torch.Tensor] = collectives.all_reduce_sum
    """Adds up over the ranks."""
    stop_requested: Callable[[], bool] = lambda: False
    """Whether this rank was asked to stop."""
    classes: ByteClasses | None = None
    """Takes scores apart by the class of bytes; None: not done, as where ranks share rows."""
    progress: Callable[[str], None] = lambda doing: None
    """Called every few batches with what is being done."""

    def measure(self, step: int) -> dict[str, float] | None:
        """The metrics of all sets after `step` steps, or None if a rank was asked to stop meanwhile.

        Those of step 0 become the baseline.
        """
        try:
            return self._measure(step)
        except Stopped:
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
        except Stopped:
            return None

    def looking(self, doing: str) -> Callable[[], None]:
        """Return what all ranks call before each batch: it raises `Stopped` once any was asked to stop."""
        batches = itertools.count()

        def look() -> None:
            if next(batches) % STOP_EVERY == 0:
                self.progress(doing)
                if float(self.total(torch.tensor([float(self.stop_requested())]))[0]) > 0:
                    raise Stopped

        return look

    def _measure(self, step: int) -> dict[str, float]:
        seq_len, max_tokens = self.recipe.seq_len, self.recipe.validation.max_tokens
        found: dict[str, float] = {}
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
                classes=self.classes,
            )
            now = measured_on(store, seq_len, max_tokens, self.recipe.document_mask)
            if step == 0:
                self.baseline[name] = Baseline(score.bits_per_byte, now)
            base = self.baseline.get(name)
            found[names.stream_bits_per_byte(name)] = score.bits_per_byte
            found[names.stream_nats_per_token(name)] = score.nats_per_token
            for kind, bits in score.class_bits_per_byte.items():
                found[names.stream_class_bits_per_byte(name, kind)] = bits
            if name.startswith(("upstream", "audit")) and base is not None and not base.unlike(now):
                found[names.stream_forgetting(name)] = score.bits_per_byte - base.bits_per_byte
        return found | self._means(found)

    def _means(self, found: Mapping[str, float]) -> dict[str, float]:
        """The scores of each role that has several sets, as far as all of them have one."""
        kinds = (names.stream_bits_per_byte, names.stream_nats_per_token, names.stream_forgetting)
        means = {
            kind(role): weighted_mean({kind(name): weight for name, weight in weights.items()}, found)
            for role, weights in self.recipe.validation.means().items()
            for kind in kinds
        }
        return {name: value for name, value in means.items() if value is not None}


class _StoppableScorer:
    """Scores batch after batch until any rank was asked to stop; all ranks score equally many batches."""

    def __init__(self, sets: ValidationSets, doing: str) -> None:
        self._scorer, self._look = sets.scorer, sets.looking(doing)

    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Score a batch; see `Scorer`."""
        self._look()
        return self._scorer.score(micro)

    def score_tokens(self, micro: MicroBatch) -> torch.Tensor:
        """Score each token of a batch; see `Scorer`."""
        self._look()
        return self._scorer.score_tokens(micro)
