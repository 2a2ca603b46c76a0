"""What a comparison of a few training steps with plain PyTorch found: within its limits, or wrong by what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

LOSS_SCALE = 2.0**16
"""The loss scale that DeepSpeed begins with in fp16."""

NEAR = 0.01
"""How near a factor must be to a known one to be named by it."""


@dataclass(frozen=True)
class Trial:
    """One way to train a step."""

    stage: int
    dtype: str
    micro_batches: int
    """Micro batches that a rank accumulates in a step."""
    ranks: int

    def __str__(self) -> str:
        """Name the trial in a message."""
        parts = (
            f"ZeRO-{self.stage}",
            self.dtype,
            _several(self.micro_batches, "micro batch", "micro batches"),
        )
        return ", ".join((*parts, _several(self.ranks, "rank", "ranks")))


@dataclass(frozen=True)
class Apart:
    """How far ten steps are from plain PyTorch's: each is relative, and 0 where both are equal."""

    gradient: float
    """The norm of the first gradient's error, by the norm of the gradient."""
    moments: float
    """The same of AdamW's running average of the gradients after the last step."""
    losses: float
    norms: float
    """The largest difference of the ten losses, and of the ten gradient norms."""
    weights: float
    """The norm of the error of the last weights, by the norm of what they moved."""


@dataclass(frozen=True)
class Finding:
    """What one trial found."""

    trial: Trial
    apart: Apart
    limits: Apart
    factor: float
    """The first gradient is this many times plain PyTorch's, in its direction."""
    factor_limit: float
    skipped: int = 0
    """Steps that were not applied, though every gradient was finite."""

    @property
    def ok(self) -> bool:
        """Whether everything is within its limit; a NaN is not."""
        return not self.reason

    @property
    def reason(self) -> str:
        """What is wrong; empty if nothing is."""
        parts = []
        wrong_factor = not abs(self.factor - 1) <= self.factor_limit
        if wrong_factor:
            parts.append(self._factor_told())
        if not wrong_factor or self._turned > self.limits.gradient:
            parts += list(self._beyond())
        if self.skipped:
            parts.append(f"{_several(self.skipped, 'step was', 'steps were')} skipped without a reason")
        return "; ".join(parts)

    @property
    def _turned(self) -> float:
        """What is left of the first gradient's error once its factor is taken out."""
        return math.sqrt(max(0.0, self.apart.gradient**2 - (self.factor - 1) ** 2))

    def _factor_told(self) -> str:
        causes = [cause for value, cause in _known_factors(self.trial) if abs(self.factor / value - 1) < NEAR]
        told = f"gradients are {self.factor:.4g} times plain PyTorch's"
        return f"{told}, as if {', or '.join(causes)}" if causes else told

    def _beyond(self) -> Iterator[str]:
        for name, value in asdict(self.apart).items():
            limit = getattr(self.limits, name)
            if not value <= limit:
                what = "the first gradient" if name == "gradient" else name
                yield f"{what} differ{'s' * (name == 'gradient')} by {value:.1e} (limit {limit:.1e})"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self) | {"ok": self.ok, "reason": self.reason}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Finding:
        """Read what `to_json` made."""
        made = ("ok", "reason", "trial", "apart", "limits")
        rest = {name: value for name, value in tree.items() if name not in made}
        return cls(Trial(**tree["trial"]), Apart(**tree["apart"]), Apart(**tree["limits"]), **rest)


def _known_factors(trial: Trial) -> Iterator[tuple[float, str]]:
    """Yield the factors by which gradients have been wrong in DeepSpeed or in trainers on it, and why."""
    ranks, parts = trial.ranks, trial.micro_batches
    if ranks > 1:
        yield (ranks - 1) / ranks, f"one of {ranks} ranks were left out: (W-1)/W for W ranks"
        yield 1 / ranks, f"they were divided by the {ranks} ranks once too often"
        yield ranks, f"they were added over the {ranks} ranks and not averaged"
    if parts > 1:
        yield (parts - 1) / parts, f"one of {parts} micro batches were left out"
        yield 1 / parts, f"one of {parts} micro batches alone were counted, or their number divided twice"
        yield parts, f"they were added over the {parts} micro batches and not averaged"
    yield LOSS_SCALE, f"the loss scale {LOSS_SCALE:.0f} were left in them"
    yield 1 / LOSS_SCALE, f"they were divided by a loss scale of {LOSS_SCALE:.0f} that was not there"


def _several(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
