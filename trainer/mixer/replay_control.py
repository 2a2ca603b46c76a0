"""The forgetting budget's controller: how much is replayed next, as a pure function of what was measured.

The run measures how much worse it has become on upstream text (its forgetting, in bits per byte) and moves
the replay ratio so that the forgetting rides at the budget: any more replay would cost new tokens, any less
would break the budget. The forgetting that a ratio leads to falls about as a power of the odds r / (1 - r),
so the controller integrates in logarithms: `logit(r) += (rate / gain) * ln(forgetting ahead / target)`. With
a delay of one decision that loop is stable while `rate * true gain / assumed gain < 1`.

Two kinds of noise are kept apart. What the choice of documents does is the same at every reading and cannot
be filtered: it lowers the target. What wiggles between readings is filtered (Kalman, local linear trend) on
the clock that forgetting runs on, the sum of the learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

PARTS = 1024
"""A ratio is a whole number of parts of so many, which the interleaving takes exactly."""

DEFAULT_GAIN = 0.7
"""By how much ln(forgetting) falls per unit of logit(ratio), where nobody has measured it."""

RATE = 0.35
"""Share of the distance to the target, in logarithms, that a decision closes; a gain may be 2.8 times off."""

UNHURRIED = 0.05
"""Share of the phase, by clock or tokens, between decisions that take the whole `RATE`; closer ones less."""

HASTE = 3.0
"""How much faster the ratio rises than it falls: too much forgetting costs more than too few new tokens."""

STEADIEST = 0.45
"""The largest share that a rising decision closes: with a gain 1.9 times off it still settles."""

RISE, FALL = 0.7, 0.35
"""The largest steps of logit(ratio) in a decision: up fast, down slowly."""

CAUTION = 1.645
"""Standard deviations between the budget and the target: the budget is kept with 95 % confidence."""

LAG = 0.1
"""Share of the phase's clock that forgetting is assumed to lag behind the ratio: so far it is predicted."""

PATIENCE = 3
"""Decisions in a row above the budget at the highest ratio, after which it cannot be held; they take at least
`LAG`, in which the ratio has its effect, and forgetting must not be on its way back."""

READING_STEP = 2.0**-13
"""Bits per byte that a reading is rounded to: sums in another order, on other ranks, give the same one."""

BURN_IN = 0.02
"""Share of the phase in which the ratio may rise and not fall: weights that have just been re-warmed jump."""

_WIGGLE, _WIGGLE_SHARE = 0.001, 0.02
"""Standard deviation of a reading beside its neighbours: in bits per byte, and as a share of the reading."""


@dataclass(frozen=True)
class ControlSettings:
    """What a phase's controller may do; it may change at any decision."""

    budget: float
    """Bits per byte that upstream may rise above the base."""
    gain: float = DEFAULT_GAIN


@dataclass(frozen=True)
class Reading:
    """What a decision is made from."""

    forgetting: float
    """Upstream bits per byte of the weights that are measured, less the base's, over the same documents."""
    spread: float
    """Standard deviation of it that the choice of documents makes."""
    clock: float
    """Share of the phase's sum of learning rates that is behind, in [0, 1]."""
    progress: float
    """Share of the phase's tokens that is behind."""
    warm: bool = True
    """Whether the burn-in is over."""


@dataclass(frozen=True)
class Bounds:
    """The ratios that may be decided, in parts of `PARTS`, both included."""

    lowest: int
    highest: int


@dataclass(frozen=True)
class ControlState:
    """What the controller remembers: the filtered forgetting, its trend, and how sure it is of both."""

    logit: float
    """Of the ratio before rounding, so that small steps add up."""
    variance: tuple[float, float, float]
    """Of forgetting, of both together, of the trend."""
    forgetting: float = 0.0
    trend: float = 0.0
    """Bits per byte per phase's clock."""
    clock: float = 0.0
    progress: float = 0.0
    above: int = 0
    """Decisions in a row above the budget at the highest ratio."""
    above_since: float = 0.0
    """Clock of the first of them."""

    @classmethod
    def starting_at(cls, ratio: Fraction, budget: float, *, at_base: bool) -> ControlState:
        """Return the state at a phase's start; at the base itself forgetting is 0, later it is not known."""
        unknown = 0.0 if at_base else (10 * budget) ** 2
        return cls(logit_of(float(ratio)), (unknown, 0.0, 25 * (budget / LAG) ** 2))

    def to_json(self) -> dict[str, Any]:
        """Return a tree that `from_json` reads back; JSON's floats are exact."""
        return asdict(self) | {"variance": list(self.variance)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> ControlState:
        """Read what `to_json` wrote."""
        return cls(**{**tree, "variance": tuple(tree["variance"])})


@dataclass(frozen=True)
class Decided:
    """What a decision is, and the numbers that led to it."""

    parts: int
    """The ratio, in parts of `PARTS`."""
    ahead: float
    """Forgetting that is predicted to come, at the ratio of now."""
    target: float
    """What it is steered to: the budget less a margin for noise."""
    deviation: float
    """Standard deviation of the filtered forgetting, the choice of documents included."""
    held: bool
    """False if the budget cannot be held at any ratio that is allowed."""

    @property
    def ratio(self) -> Fraction:
        """The replay ratio."""
        return Fraction(self.parts, PARTS)


def decide_replay(
    settings: ControlSettings, state: ControlState, reading: Reading, bounds: Bounds
) -> tuple[ControlState, Decided]:
    """Decide a replay ratio from a reading; returns the state after it, and the decision.

    The ratio is for the samples from the next decision on, so that a reading may be taken while the training
    goes on.
    """
    behind = max(reading.clock - state.clock, reading.progress - state.progress)
    state = replace(_filtered(settings, state, reading), progress=reading.progress)
    deviation = math.sqrt(state.variance[0] + reading.spread**2)
    target = max(settings.budget - CAUTION * deviation, settings.budget / 4)
    ahead = state.forgetting + min(LAG, max(0.0, 1.0 - reading.clock)) * state.trend
    rate = RATE * min(1.0, behind / UNHURRIED)
    distance = math.log(max(ahead, target / 4) / target)
    move = (min(HASTE * rate, STEADIEST) if distance > 0 else rate) / settings.gain * distance
    if abs(ahead - target) < 0.5 * deviation:
        move = 0.0  # the noise would only be followed
    move = min(RISE, max(-FALL if reading.warm else 0.0, move))
    low, high = (logit_of(parts / PARTS) for parts in (bounds.lowest, bounds.highest))
    logit = min(max(state.logit + move, low), high)  # never wound up beyond what is allowed
    parts = min(max(round(PARTS * _sigmoid(logit)), bounds.lowest), bounds.highest)
    state = _counted(settings, replace(state, logit=logit), deviation, at_top=parts == bounds.highest)
    waited = state.above >= PATIENCE and state.clock - state.above_since >= min(LAG, 1 - state.above_since)
    at_end = state.forgetting + (1.0 - reading.clock) * state.trend
    held = not waited or at_end <= settings.budget
    if not held:
        state = replace(state, above=0)  # what is done about it gets as long to show what it does
    return state, Decided(parts, ahead, target, deviation, held)


def _counted(
    settings: ControlSettings, state: ControlState, deviation: float, *, at_top: bool
) -> ControlState:
    """Count the decisions in a row that are surely above the budget at the highest ratio."""
    if not at_top or state.forgetting - 2 * deviation <= settings.budget:
        return replace(state, above=0)
    return replace(
        state, above=state.above + 1, above_since=state.above_since if state.above else state.clock
    )


def _filtered(settings: ControlSettings, state: ControlState, reading: Reading) -> ControlState:
    """Update forgetting and trend with a reading: a Kalman filter for a local linear trend."""
    step = max(reading.clock - state.clock, 1e-9)
    pace = settings.budget / LAG
    jitter = pace**2 / LAG
    value, both, slope = state.variance
    value += 2 * step * both + step**2 * slope + jitter * step**3 / 3
    both += step * slope + jitter * step**2 / 2
    slope += jitter * step
    expected = state.forgetting + step * state.trend
    noise = (_WIGGLE + _WIGGLE_SHARE * abs(reading.forgetting)) ** 2
    surprise, total = reading.forgetting - expected, value + noise
    return replace(
        state,
        forgetting=expected + value / total * surprise,
        trend=state.trend + both / total * surprise,
        variance=(value * noise / total, both * noise / total, slope - both**2 / total),
        clock=reading.clock,
    )


def round_reading(bits_per_byte: float) -> float:
    """Round forgetting to a whole number of `READING_STEP`."""
    return round(bits_per_byte / READING_STEP) * READING_STEP


def logit_of(ratio: float) -> float:
    """Return ln(ratio / (1 - ratio)) of a ratio between 0 and 1."""
    return math.log(ratio / (1.0 - ratio))


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
