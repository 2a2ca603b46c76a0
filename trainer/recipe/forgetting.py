"""The forgetting budget of a mixture, and the averaged weights that it is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil, floor
from typing import Annotated, Literal

from pydantic import Field

from trainer.recipe.fields import Exact, LengthField, Positive, Rate, Section
from trainer.recipe.numbers import Length

START_RATIO = "50%"
"""Where a budgeted phase starts if it does not say: high, since forgetting is seen only after it has come."""


class Average(Section):
    """Averaged weights, which are saved, measured and exported beside the trained ones."""

    kind: Literal["ema", "window"] = "ema"
    """`ema`: each step counts, less with age; `window`: the mean of one stretch of steps at a time."""
    half_life: Positive
    """Tokens: with `ema` those after which a step counts half; with `window` those of a stretch."""

    def share_of_step(self, trained: int, step: int) -> float:
        """Return how much a step's weights count in the average after it.

        `trained` are the phase's tokens so far, with those of the step. The mean begins with the first step,
        so that the weights from before it do not count.
        """
        if self.kind == "window":
            within = (trained - 1) % self.half_life + 1
            return min(1.0, step / within)
        return max(1.0 - 0.5 ** (step / self.half_life), min(1.0, step / trained))


class ForgettingBudget(Section):
    """What a mixture is steered by, if it has a forgetting budget; without one none of it has an effect."""

    forgetting_budget: Annotated[Rate, Field(gt=0)] | None = None
    """Bits per byte that upstream may rise above the base; the run sets its replay so that it holds."""
    replay_min: Exact = Fraction(2, 1024)
    """The lowest replay ratio that may be decided."""
    replay_max: Exact = Fraction(60, 100)
    """The highest one."""
    decide_every: LengthField = Length(Fraction(1, 100), relative=True)
    """Tokens, or a share of the phase, between two decisions; each applies one such stretch later."""
    replay_gain: Annotated[Rate, Field(gt=0)] = 0.7
    """By how much ln(forgetting) falls per unit of logit(replay_ratio), as a study of the replay finds it."""
    measured_samples: Annotated[Positive, Field(ge=8)] = 256
    """Pieces of upstream text that are measured: always the same, each within a document."""
    on_failure: Literal["stop", "lower_lr", "pull_to_base"] = "stop"
    """If the budget cannot be held: stop; halve the learning rate; or pull the weights towards the base."""

    def budget_problems(self, replay_ratio: Fraction | None) -> Iterator[str]:
        """Yield a line for each field that does not fit to the others."""
        if self.forgetting_budget is None:
            fields = ForgettingBudget.model_fields
            if given := [name for name in fields if getattr(self, name) != fields[name].default]:
                yield f"{given[0]} has an effect only with a forgetting_budget; give one, or remove it"
            return
        if not Fraction(2, 1024) <= self.replay_min <= self.replay_max <= Fraction(1022, 1024):
            yield (
                f"replay_min {self.replay_min} and replay_max {self.replay_max} must be in this order "
                "between 2/1024 and 1022/1024"
            )
        elif ceil(self.replay_min * 1024) > floor(self.replay_max * 1024):
            yield f"no part of 1024 is between replay_min {self.replay_min} and replay_max {self.replay_max}"
        elif replay_ratio is not None and not self.replay_min <= replay_ratio <= self.replay_max:
            yield (
                f"replay_ratio {replay_ratio}, where it starts, is not between replay_min {self.replay_min} "
                f"and replay_max {self.replay_max}"
            )
