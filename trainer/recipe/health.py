"""What a run does about its own bad steps: spikes, skipped steps and hangs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.recipe.fields import Positive, Rate, Seconds, Section


class SpikeRule(Section):
    """When a number counts as a spike, and what is done about it."""

    threshold: Annotated[Rate, Field(gt=0)] = 8.0
    """Robust standard deviations above the median of the last 128 steps of the phase."""
    action: Literal["warn", "skip_update", "roll_back"] = "warn"
    """A line in the log; the update is not made; or back to the checkpoint before, without these samples."""


class Health(Section):
    """What the run does about its own bad steps."""

    loss_spike: SpikeRule = SpikeRule()
    """For the loss of a step."""
    grad_norm_spike: SpikeRule = SpikeRule(threshold=16.0)
    """For the global gradient norm before clipping."""
    max_skipped: Positive = 20
    """So many steps skipped in a row end the run; fp16's loss scale needs about a dozen at first."""
    hang_after: Seconds | None = 1800.0
    """No step for so long: every rank prints its stacks and ends with exit status 75. Units: s, m, h, d."""
