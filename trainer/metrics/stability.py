"""Notice training that goes wrong: non-finite gradients and loss spikes."""

from __future__ import annotations

import math
import statistics
import sys
from collections import deque
from collections.abc import Sequence

from tokenization.errors import UserError

# ------------------------------------------------------------------------------------------------ numbers


class NonFinite:
    """Bears a few steps whose gradients are not finite, and ends the run when they do not cease."""

    def __init__(self, limit: int = 20) -> None:
        """`limit` is how many such steps in a row are too many; fp16's loss scaler needs a dozen at first."""
        self._limit = limit
        self.in_a_row = 0
        self.total = 0

    def update(self, step: int, applied: bool) -> None:
        """Takes note of a step, `applied` or skipped; all ranks see the same, so all stop together.

        Raises:
            UserError: the limit is reached.
        """
        self.in_a_row = 0 if applied else self.in_a_row + 1
        self.total += not applied
        if self.in_a_row >= self._limit:
            raise UserError(
                f"step {step}: gradients have not been finite for {self.in_a_row} steps in a row",
                fix="go on from an earlier checkpoint with a lower max_lr, a longer warmup, or dtype: bf16",
            )


def robust_z(history: Sequence[float], value: float) -> float:
    """By how many standard deviations `value` lies above `history`, estimated by median and MAD.

    The estimate bears outliers in up to half of the history. A flat history counts as one that wavers by
    0.1 %, so that its first wrinkle is no alarm. Not finite `value`: infinity.
    """
    if not math.isfinite(value):
        return math.inf
    middle = statistics.median(history)
    deviation = statistics.median(abs(past - middle) for past in history)
    # 1.4826 makes the MAD of a normal distribution its standard deviation.
    return (value - middle) / max(1.4826 * deviation, 1e-3 * abs(middle), sys.float_info.min)


class Spikes:
    """Watches the training loss for jumps: a bad shard, or an LR too high."""

    def __init__(self, window: int = 128, threshold: float = 8.0, at_least: int = 32) -> None:
        """A spike lies `threshold` deviations above the last `window` losses, `at_least` so many."""
        self._history: deque[float] = deque(maxlen=window)
        self._threshold, self._at_least = threshold, at_least

    def update(self, loss: float) -> float | None:
        """The spike's height in standard deviations, or None when `loss` is as losses are."""
        height = robust_z(self._history, loss) if len(self._history) >= self._at_least else 0.0
        if math.isfinite(loss):
            self._history.append(loss)
        return height if height > self._threshold else None
