"""What a run does about its own bad steps, as `health` in the recipe says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.engine.skipping import Limits
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.metrics.stability import NonFinite, Spikes
from trainer.mixer.description import PassedOver
from trainer.recipe.health import Health


@dataclass(frozen=True)
class Spike:
    """A step that is to be undone, with the samples that made it."""

    step: int
    what: str
    samples: PassedOver


class Vitals:
    """The last steps of a phase, by which the next one is judged; a checkpoint keeps what it remembers."""

    def __init__(self, rules: Health, saved: Mapping[str, Any], last_good: Callable[[], str]) -> None:
        """`saved` is what `to_json` wrote, or empty; `last_good` names the last checkpoint."""
        self._rules, self._last_good = rules, last_good
        self._losses = Spikes(rules.loss_spike.threshold, saved.get("losses", ()))
        self._norms = Spikes(rules.grad_norm_spike.threshold, saved.get("grad_norms", ()))
        self._skipped = NonFinite(rules.max_skipped, saved.get("skipped_in_a_row", 0))

    def to_json(self) -> dict[str, Any]:
        """Return a tree of plain values."""
        return {
            "losses": list(self._losses.history),
            "grad_norms": list(self._norms.history),
            "skipped_in_a_row": self._skipped.in_a_row,
        }

    @property
    def limits(self) -> Limits:
        """Above which loss or gradient norm the next step is skipped."""
        rules = self._rules
        return Limits(
            self._losses.limit if rules.loss_spike.action == "skip_update" else math.inf,
            self._norms.limit if rules.grad_norm_spike.action == "skip_update" else math.inf,
        )

    def judge(self, step: int, loss: float, grad_norm: float, applied: bool) -> list[tuple[str, str]]:
        """Compare a step with those before it; return what calls for a roll-back: the metric, and a line.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        limits, call = self.limits, []
        for metric, value, limit, spikes, rule in (
            (names.LOSS, loss, limits.loss, self._losses, self._rules.loss_spike),
            (names.GRAD_NORM, grad_norm, limits.grad_norm, self._norms, self._rules.grad_norm_spike),
        ):
            height = spikes.update(value)
            if height is None or not math.isfinite(value):
                continue  # what is not finite was skipped for that, and has changed nothing
            kind = "loss" if metric == names.LOSS else "gradient norm"
            deviations = f"{metric} is {height:.0f} standard deviations above the recent median"
            what = f"{kind} spike: {deviations}"
            skipped = not applied and value > limit
            after = "; the update is skipped: weights and LR schedule unchanged" if skipped else ""
            logger.warning(f"step {step}: {what}{after}")
            if rule.action == "roll_back":
                call.append((metric, what))
        if not applied and not math.isfinite(grad_norm):
            logger.warning(f"step {step}: skipped: non-finite gradients; weights and LR schedule unchanged")
        self._skipped.update(step, applied, self._last_good)
        return call

    def pass_over(self, step: int) -> None:
        """Count a step whose samples are left out as skipped.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        logger.info(f"step {step}: its samples are left out, for the spike that they made before")
        self._skipped.update(step, False, self._last_good)
