"""Lay out a phase's segments: those of the recipe, and those that were decided while it ran."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from tokenization.errors import UserError
from trainer.mixer.interleave import Period, period
from trainer.mixer.replay_control import PARTS, Bounds
from trainer.mixer.weights import weights_of
from trainer.recipe.forgetting import ForgettingBudget
from trainer.recipe.schema import Recipe


@dataclass(frozen=True)
class ResolvedSegment:
    """A stretch of a phase with constant weights."""

    start: int
    """Samples into the phase."""
    weights: tuple[Fraction, ...]

    @property
    def period(self) -> Period:
        """The order of the sources in this stretch."""
        return period(self.weights)


@dataclass(frozen=True)
class RatioChange:
    """A replay ratio that was decided: it holds from a sample of a phase on."""

    phase: int
    from_sample: int
    parts: int
    """The ratio, in parts of `replay_control.PARTS`."""

    @property
    def ratio(self) -> Fraction:
        """The replay ratio."""
        return Fraction(self.parts, PARTS)


def decision_samples(recipe: Recipe, phase: int) -> int | None:
    """Return the samples between two decisions of a phase; None if it has no forgetting budget."""
    steered = recipe.phases[phase].steered
    if steered is None:
        return None
    tokens = steered.decide_every.of(recipe.phases[phase].tokens)
    return max(1, ceil(tokens / recipe.seq_len_of(phase)))


def allowed_ratios(budget: ForgettingBudget) -> Bounds:
    """Return the ratios that the recipe allows to be decided."""
    return Bounds(ceil(budget.replay_min * PARTS), floor(budget.replay_max * PARTS))


def start_parts(budget: ForgettingBudget, replay_ratio: Fraction | None) -> int:
    """Return the ratio that a budgeted phase starts with, in parts: the nearest one that may be decided."""
    allowed = allowed_ratios(budget)
    return min(max(round((replay_ratio or Fraction(0)) * PARTS), allowed.lowest), allowed.highest)


def resolve_segments(
    recipe: Recipe,
    number: int,
    samples: Mapping[str, int],
    begun_with: Collection[str] | None,
    changes: Sequence[RatioChange] = (),
) -> tuple[list[ResolvedSegment], list[UserError]]:
    """Return the segments of phase `number`, and what is wrong with them.

    `samples` are those of each source; a phase that has begun takes from those that it was `begun_with`. A
    decision that leaves the ratio as it is begins no segment.
    """
    phase, spans, problems = recipe.phases[number], [], []
    for place, segment in enumerate(phase.mixture):
        field = f"phases.{number}.mixture.{place}"
        # A segment that an anneal cuts off may stay: ending a phase early needs no new mixture.
        if segment.start >= (end := max(phase.tokens, phase.length)):
            what, fix = f"is beyond the phase's end at {end:,} tokens", "lower it, or remove the segment"
            problems.append(UserError(what, field=f"{field}.from", value=segment.start, fix=fix))
        # The first sample without a token before it.
        start = -(-segment.start // recipe.seq_len_of(number))
        try:
            if segment.forgetting_budget is None:
                weights = weights_of(segment, recipe.sources, samples, field, begun_with)
                spans.append(ResolvedSegment(start, weights))
                continue
            allowed = allowed_ratios(segment)
            begins = RatioChange(number, 0, start_parts(segment, segment.replay_ratio))
            ends = [
                RatioChange(number, 0, parts) for parts in (allowed.lowest | 1, (allowed.highest - 1) | 1)
            ]
            for change in (*ends, begins, *changes):
                decided = segment.model_copy(update={"replay_ratio": change.ratio})
                weights = weights_of(decided, recipe.sources, samples, field, begun_with)
                # The ends are only tried: whether a period is too long must show before the run.
                if change not in ends and not (spans and weights == spans[-1].weights):
                    spans.append(ResolvedSegment(change.from_sample, weights))
        except UserError as error:
            problems.append(error)
    return spans, problems
