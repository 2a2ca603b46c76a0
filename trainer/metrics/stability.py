"""Signs of unstable training: steps that were skipped, and spikes of the loss and of the gradient norm."""

from __future__ import annotations

import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Sequence

from tokenization.errors import UserError

WINDOW = 128
"""Steps that a new one is compared with."""

AT_LEAST = 32
"""Steps before which nothing counts as a spike."""


class NonFinite:
    """Tolerates a few skipped steps in a row and stops the run after too many."""

    def __init__(self, limit: int = 20, in_a_row: int = 0) -> None:
        """`limit` skipped steps in a row are too many; fp16's loss scaler skips about a dozen at first."""
        self._limit = limit
        self.in_a_row = in_a_row

    def update(self, step: int, applied: bool, last_good: Callable[[], str] = lambda: "") -> None:
        """Count a step, `applied` or skipped; all ranks see the same, so all stop together.

        `last_good` says which checkpoint is the last one.

        Raises:
            UserError: the limit is reached.
        """
        self.in_a_row = 0 if applied else self.in_a_row + 1
        if self.in_a_row >= self._limit:
            raise UserError(
                f"step {step}: {self.in_a_row} steps in a row were skipped for non-finite gradients or "
                f"for spikes (health.max_skipped); {last_good()}".removesuffix("; "),
                fix="start another run_dir whose model.base is a checkpoint from before these steps, with a "
                "lower max_lr, a longer warmup, or dtype: bf16",
            )


def level(history: Sequence[float]) -> tuple[float, float]:
    """Return the median of `history` and its standard deviation, estimated by the MAD.

    The estimate tolerates outliers in up to half of the history. The deviation counts as at least 0.1 % of
    the median, so that a small change after a flat history is not a spike.
    """
    middle = statistics.median(history)
    deviation = statistics.median(abs(past - middle) for past in history)
    # 1.4826 makes the MAD of a normal distribution its standard deviation.
    return middle, max(1.4826 * deviation, 1e-3 * abs(middle), sys.float_info.min)


def robust_z(history: Sequence[float], value: float) -> float:
    """Return by how many standard deviations `value` lies above `history`, see `level`.

    A `value` that is not finite gives infinity.
    """
    if not math.isfinite(value):
        return math.inf
    middle, deviation = level(history)
    return (value - middle) / deviation


class Spikes:
    """Finds spikes of a number, as a bad shard or too high an LR causes them."""

    def __init__(self, threshold: float = 8.0, history: Sequence[float] = ()) -> None:
        """A spike lies `threshold` deviations above the last `WINDOW` numbers, at least `AT_LEAST`."""
        self._threshold = threshold
        self.history: deque[float] = deque(history, maxlen=WINDOW)

    @property
    def limit(self) -> float:
        """The next number is a spike if it is above this; infinite before there is a history."""
        if len(self.history) < AT_LEAST:
            return math.inf
        middle, deviation = level(self.history)
        return middle + self._threshold * deviation

    def update(self, number: float) -> float | None:
        """Add a number; returns its height in standard deviations if it is a spike, else None."""
        height = robust_z(self.history, number) if len(self.history) >= AT_LEAST else 0.0
        if math.isfinite(number):
            self.history.append(number)
        return height if height > self._threshold else None
