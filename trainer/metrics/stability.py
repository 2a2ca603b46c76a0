"""Signs of unstable training: non-finite gradients and loss spikes."""

from __future__ import annotations

import math
import statistics
import sys
from collections import deque
from collections.abc import Sequence

from tokenization.errors import UserError


class NonFinite:
    """Tolerates a few skipped steps in a row and stops the run after too many."""

    def __init__(self, limit: int = 20) -> None:
        """`limit` skipped steps in a row are too many; fp16's loss scaler skips about a dozen at first."""
        self._limit = limit
        self.in_a_row = 0

    def update(self, step: int, applied: bool) -> None:
        """Count a step, `applied` or skipped; all ranks see the same, so all stop together.

        Raises:
            UserError: the limit is reached.
        """
        self.in_a_row = 0 if applied else self.in_a_row + 1
        if self.in_a_row >= self._limit:
            raise UserError(
                f"step {step}: gradients have not been finite for {self.in_a_row} steps in a row",
                fix="start another run_dir whose model.base is a checkpoint from before these steps, with a "
                "lower max_lr, a longer warmup, or dtype: bf16",
            )


def robust_z(history: Sequence[float], value: float) -> float:
    """Return by how many standard deviations `value` lies above `history`, estimated by median and MAD.

    The estimate tolerates outliers in up to half of the history. The deviation counts as at least 0.1 % of
    the median, so that a small change after a flat history is not a spike. A `value` that is not finite
    gives infinity.
    """
    if not math.isfinite(value):
        return math.inf
    middle = statistics.median(history)
    deviation = statistics.median(abs(past - middle) for past in history)
    # 1.4826 makes the MAD of a normal distribution its standard deviation.
    return (value - middle) / max(1.4826 * deviation, 1e-3 * abs(middle), sys.float_info.min)


class Spikes:
    """Finds spikes of the training loss, as a bad shard or too high an LR causes them."""

    def __init__(self, window: int = 128, threshold: float = 8.0, at_least: int = 32) -> None:
        """A spike lies `threshold` deviations above the last `window` losses, at least `at_least` of them."""
        self._history: deque[float] = deque(maxlen=window)
        self._threshold, self._at_least = threshold, at_least

    def update(self, loss: float) -> float | None:
        """Add a loss; returns its height in standard deviations if it is a spike, else None."""
        height = robust_z(self._history, loss) if len(self._history) >= self._at_least else 0.0
        if math.isfinite(loss):
            self._history.append(loss)
        return height if height > self._threshold else None
