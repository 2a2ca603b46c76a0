"""What a study says of the run to come: replay, max_lr and warm-up, how sure that is, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from trainer.study.intervals import t_interval
from trainer.study.laws import LawFit, Observations
from trainer.study.observed import (
    LEAST_WEIGHTS,
    FittedLaw,
    Knobs,
    StudiedArm,
    fit_forgetting,
    of_one_schedule,
)

FARTHEST = 10.0
"""How many times the tokens or the weights of the largest arm a number is named for."""


@dataclass(frozen=True)
class Target:
    """The run to come."""

    forgetting: float
    """Bits per byte that upstream may rise."""
    tokens: float
    weights: float


@dataclass(frozen=True)
class KnobAdvice:
    """An answer to one question, or why there is none."""

    knob: str
    value: float | None
    """None if no number is named."""
    interval: tuple[float, float] | None = None
    """Of replay: from the fits of the bootstrap. Else the values that the seeds do not tell apart."""
    lines: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    """Directories of the arms that support it."""

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {**vars(self), "lines": list(self.lines), "arms": list(self.arms)}


@dataclass(frozen=True)
class Recommendation:
    """All answers for a run to come."""

    target: Target
    advice: tuple[KnobAdvice, ...]
    notes: tuple[str, ...]
    """How far it is from what was measured."""
    gain: float | None
    """By how much ln(forgetting) falls per unit of logit(replay): what a forgetting budget is steered by."""
    law: FittedLaw | None
    refusal: str = ""
    """Why nothing is said of such a run."""

    def of(self, knob: str) -> KnobAdvice:
        """Return the answer to one question."""
        return next(one for one in self.advice if one.knob == knob)

    @property
    def refused(self) -> bool:
        """Whether no number is named at all."""
        return all(one.value is None for one in self.advice)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        law = self.law.to_json() if self.law else None
        told = {one.knob: one.to_json() for one in self.advice}
        return {"target": vars(self.target), **told, "notes": list(self.notes), "gain": self.gain, "law": law}

    def to_text(self) -> str:
        """Return the same as lines of text."""
        if self.refusal:
            return "\n".join([f"no number is named: {self.refusal}", *self.notes])
        told = []
        for one in self.advice:
            shown = _SHOWN[one.knob]
            value = "no number" if one.value is None else shown(one.value)
            if one.interval:
                value += f" ({shown(one.interval[0])} to {shown(one.interval[1])})"
            told.append(f"{one.knob:<8} {value}")
            told += [f"         {line}" for line in one.lines]
        return "\n".join([*told, *self.notes])


_SHOWN: dict[str, Callable[[float], str]] = {
    "replay": lambda value: f"{value:.2%}",
    "max_lr": lambda value: f"{value:g}",
    "warmup": lambda value: f"{value:.2%}",
}


def recommend(
    arms: Sequence[StudiedArm], forgetting: float, tokens: float | None = None, weights: float | None = None
) -> Recommendation:
    """Answer what the arms can say of a run of `tokens` and `weights`; by default those of the largest arm.

    The replay is the least that keeps forgetting at the given bits per byte, by the law of forgetting (see
    `laws.FORGETTING_LAW`); where nothing is extrapolated it lies between the arms that broke it and that
    kept it. `max_lr` and the warm-up are those of the arms that learnt most among those that kept it. Beyond
    `FARTHEST` times the largest arm no number is named.
    """
    usual = of_one_schedule(arms)
    largest = (
        max((one.arm.tokens for one in usual), default=0),
        max((one.arm.parameters for one in usual), default=0),
    )
    target = Target(forgetting, tokens or float(largest[0]), weights or float(largest[1]))
    law = fit_forgetting(arms)
    ratios = (target.tokens / max(largest[0], 1), target.weights / max(largest[1], 1))
    too_far = _too_far(usual, target, ratios, law)
    gain = measured_gain(usual)
    if too_far:
        advice = tuple(KnobAdvice(knob, None, lines=(too_far,)) for knob in _SHOWN)
        return Recommendation(target, advice, _notes(usual, ratios), gain, law, too_far)
    replay = _replay(usual, target, ratios, law)
    own = usual[0].knobs
    rest = [
        _knob(arms, "max_lr", lambda knobs: knobs.max_lr, target, own),
        _knob(arms, "warmup", lambda knobs: knobs.warmup, target, own),
    ]
    return Recommendation(target, (replay, *rest), _notes(usual, ratios), gain, law)


def _too_far(
    arms: Sequence[StudiedArm], target: Target, ratios: Sequence[float], law: FittedLaw | None
) -> str | None:
    """Tell why nothing can be said of such a run, and which arm would help most; None if something can."""
    if not arms:
        return "no arm has ended with finite scores of upstream and downstream; finish `rewarm study replay`"
    replay = _first_guess(arms, target)
    by_tokens, by_weights = ratios
    if max(ratios) > FARTHEST:
        what = "tokens" if by_tokens >= by_weights else "weights"
        tokens = max(target.tokens / FARTHEST, min(target.tokens, max(one.arm.tokens for one in arms)))
        weights = max(target.weights / FARTHEST, max(one.arm.parameters for one in arms))
        return (
            f"the run has {max(ratios):,.0f} times the {what} of the largest arm, which is beyond "
            f"{FARTHEST:.0f} times; the arm that would help most: {tokens:,.0f} tokens, "
            f"{weights:,.0f} weights, replay {replay:.1%}"
        )
    sizes = {one.arm.parameters for one in arms}
    if not 0.8 < by_weights < 1.25 and len(sizes) < 2:
        return (
            f"all arms have {next(iter(sizes)):,} weights, so that nothing tells what size does; the arm "
            f"that would help most: a size nearer to {target.weights:,.0f} weights (--sizes), replay "
            f"{replay:.1%}"
        )
    if by_tokens > 1.001 and law is not None and "b" not in law.fit.free:
        return "all scores are at one number of tokens; the arm that would help most: one of more tokens"
    return None


def _first_guess(arms: Sequence[StudiedArm], target: Target) -> float:
    """Return the least share of an arm that kept the target, or the largest that was tried."""
    kept = [one.knobs.replay for one in arms if one.arm.forgetting <= target.forgetting]
    return min(kept, default=max(one.knobs.replay for one in arms))


def _notes(arms: Sequence[StudiedArm], ratios: Sequence[float]) -> tuple[str, ...]:
    notes = [
        f"extrapolated to {ratio:.1f} times the {what} of the largest arm"
        for what, ratio in zip(("tokens", "weights"), ratios, strict=True)
        if 1.001 < ratio <= FARTHEST
    ]
    if notes:
        notes.append("max_lr and warm-up are those of the arms: no law carries them further")
    seeds = {(one.study, one.arm.seed) for one in arms}
    if arms and len({seed for _, seed in seeds}) < 2:
        notes.append("one seed: how far others would differ is not known; give --seeds 3 to the study")
    if arms and max(one.arm.parameters for one in arms) < LEAST_WEIGHTS:
        notes.append(
            "all arms have fewer than 15M weights: they show signs, not ratios (Olmix, arXiv 2602.12237)"
        )
    return tuple(notes)


def _replay(
    arms: Sequence[StudiedArm], target: Target, ratios: Sequence[float], law: FittedLaw | None
) -> KnobAdvice:
    """Return the least share of replay that keeps the target."""
    shares = sorted({one.knobs.replay for one in arms})
    if len(shares) < 3:
        what = f"the arms have {len(shares)} share(s) of replay, and 3 are needed; run `rewarm study replay`"
        return KnobAdvice("replay", None, lines=(what,))
    here = max(ratios) <= 1.001 and min(ratios) > 0.999
    failed, kept = _bracket(arms, target) if here else (0.0, shares[-1])
    supporting = tuple(str(one.arm.directory) for one in arms)
    if kept is None:
        largest = _largest(arms)
        worst = min(_forgetting_of(largest, one.knobs.replay) for one in largest)
        what = (
            f"no share up to {shares[-1]:.0%} kept forgetting at {target.forgetting:g}; the least was "
            f"{worst:.4f} bits per byte; the arm that would help most: a larger share, or a lower max_lr"
        )
        return KnobAdvice("replay", None, lines=(what,), arms=supporting)
    lines = [_measured(arms, failed, kept, target)] if here else []
    why = "there are too few scores for it" if law is None else law.distrust
    if law is None or why:
        lines.append(f"the law of forgetting is not used: {why}")
        if not here:
            lines.append("so nothing is extrapolated; the arm that would help most: one as long as the run")
            return KnobAdvice("replay", None, None, tuple(lines), supporting)
        return KnobAdvice("replay", kept, (failed, kept), tuple(lines), supporting)
    found = solve_replay(law.fit, target, shares[-1])
    unreached = sum(math.isinf(one) for one in found) / len(found)
    if unreached > 0.025 and not here:
        what = (
            f"in {unreached:.0%} of the fits no share up to {shares[-1]:.0%}, the largest that was tried, "
            f"keeps forgetting at {target.forgetting:g}; the arm that would help most: {shares[-1]:.0%} or "
            f"more replay, and as many of the {target.tokens:,.0f} tokens as you can"
        )
        return KnobAdvice("replay", None, lines=(what,), arms=supporting)
    bounds = np.quantile(found, (0.5, 0.025, 0.975), method="higher")
    middle, low, high = np.clip(bounds, failed, kept).tolist()
    lines += [
        f"{law.fit.law.formula}: mean relative error {law.fit.relative_error:.2%}"
        + "".join(f"; {test.held_out} predicted within {test.error:.2%}" for test in law.tests),
        f"{len(arms)} arms of max_lr {arms[0].knobs.max_lr:g} support it",
    ]
    return KnobAdvice("replay", middle, (low, high), tuple(lines), supporting)


def _largest(arms: Sequence[StudiedArm]) -> list[StudiedArm]:
    """Return the arms of the largest model and its longest budget."""
    largest = max((one.arm.parameters, one.arm.tokens) for one in arms)
    return [one for one in arms if (one.arm.parameters, one.arm.tokens) == largest]


def _forgetting_of(arms: Sequence[StudiedArm], share: float) -> float:
    """Return the mean forgetting of the arms of a share of replay."""
    return fmean(one.arm.forgetting for one in arms if one.knobs.replay == share)


def _bracket(arms: Sequence[StudiedArm], target: Target) -> tuple[float, float | None]:
    """Return the largest share that broke the target, and the least one above it that kept it."""
    own = _largest(arms)
    shares = sorted({one.knobs.replay for one in own})
    broke = [share for share in shares if _forgetting_of(own, share) > target.forgetting]
    failed = max(broke, default=0.0)
    kept = [share for share in shares if share > failed or not broke]
    return failed, min(kept, default=None)


def _measured(arms: Sequence[StudiedArm], failed: float, kept: float, target: Target) -> str:
    own = _largest(arms)
    told = [f"at {share:.1%} {_forgetting_of(own, share):+.4f}" for share in sorted({failed, kept})
            if any(one.knobs.replay == share for one in own)]  # fmt: skip
    return f"measured forgetting: {', '.join(told)} bits per byte, against {target.forgetting:g}"


def solve_replay(fit: LawFit, target: Target, most: float) -> list[float]:
    """Return the least share up to `most` that keeps the target in each fit of the bootstrap, or infinity."""
    odds = np.linspace(math.log(1e-4), math.log(most / (1 - most)) if most < 1 else 9.0, 2000)
    shares = np.concatenate([[0.0], 1 / (1 + np.exp(-odds))])
    zero = np.zeros_like(shares)
    run = Observations(
        zero,
        {
            "weights": zero + target.weights, "tokens": zero + target.tokens, "replay": shares, "base": zero,
        },
        zero.astype(np.int64),
        fit.data.reference,
    )  # fmt: skip
    found = []
    for values in fit.samples or (fit.values,):
        kept = np.flatnonzero(fit.law.predict(values, run) <= target.forgetting)
        found.append(float(shares[kept[0]]) if kept.size else math.inf)
    return found


def _knob(
    arms: Sequence[StudiedArm], name: str, of: Callable[[Knobs], float], target: Target, own: Knobs
) -> KnobAdvice:
    """Return the value that learnt most among those that kept the target, and those as good as it."""
    group = _varied(arms, name, of)
    values = sorted({of(one.knobs) for one in group})
    if len(values) < 2:
        what = f"it did not vary: {_SHOWN[name](of(own))} is what the arms had; run `rewarm study {name}`"
        return KnobAdvice(name, of(own), lines=(what,))
    ends = {value: [one for one in group if of(one.knobs) == value] for value in values}
    forgetting = {value: fmean(one.arm.forgetting for one in held) for value, held in ends.items()}
    replay = group[0].knobs.replay
    keeping = [value for value in values if forgetting[value] <= target.forgetting]
    lines = [
        f"{_SHOWN[name](value)}: downstream {fmean(one.downstream for one in held):.4f}, forgetting "
        f"{forgetting[value]:+.4f}"
        for value, held in ends.items()
    ]
    supporting = tuple(str(one.arm.directory) for one in group)
    if not keeping and of(own) in values:
        lines.append(
            f"none kept the target at {replay:.1%} replay; {_SHOWN[name](of(own))} is that of the arms that "
            "the replay above was found with"
        )
        return KnobAdvice(name, of(own), None, tuple(lines), supporting)
    best = min(keeping or values, key=lambda value: fmean(one.downstream for one in ends[value]))
    alike = [value for value in keeping or values if _not_told_apart(ends[best], ends[value])]
    if len(ends[best]) < 2:
        lines.append("one seed: which others do as well is not known")
    if of(own) != best:
        lines.append(f"the replay above was found with {_SHOWN[name](of(own))}")
    return KnobAdvice(name, best, (min(alike), max(alike)), tuple(lines), supporting)


def _varied(arms: Sequence[StudiedArm], name: str, of: Callable[[Knobs], float]) -> list[StudiedArm]:
    """Return the arms that differ in this alone, in the most values; the largest arms of equals."""
    groups: dict[Any, list[StudiedArm]] = {}
    for one in arms:
        others = tuple(value for knob, value in vars(one.knobs).items() if knob != name)
        groups.setdefault((others, one.arm.tokens, one.arm.parameters), []).append(one)

    def worth(group: list[StudiedArm]) -> tuple[int, int, int]:
        return len({of(one.knobs) for one in group}), group[0].arm.parameters, group[0].arm.tokens

    return max(groups.values(), key=worth, default=[])


def _not_told_apart(best: Sequence[StudiedArm], other: Sequence[StudiedArm]) -> bool:
    """Tell whether the seeds leave open which of two values ends lower downstream; paired by their seeds."""
    if best is other or best == other:
        return True
    lower = {one.arm.seed: one.downstream for one in best}
    pairs = [one.downstream - lower[one.arm.seed] for one in other if one.arm.seed in lower]
    return len(pairs) > 1 and t_interval(pairs).low <= 0


def measured_gain(arms: Sequence[StudiedArm]) -> float | None:
    """Return by how much ln(forgetting) falls per unit of logit(replay), over the ends of the arms.

    None where fewer than two shares between 0 and 1 forgot anything, or more replay did not help.
    """
    largest = max(((one.arm.parameters, one.arm.tokens) for one in arms), default=None)
    points = [
        (math.log(one.knobs.replay / (1 - one.knobs.replay)), math.log(one.arm.forgetting))
        for one in arms
        if (one.arm.parameters, one.arm.tokens) == largest
        and 0 < one.knobs.replay < 1
        and one.arm.forgetting > 0
    ]
    if len({odds for odds, _ in points}) < 2:
        return None
    odds, logs = np.array(points).T
    slope = -float(np.polyfit(odds, logs, 1)[0])
    return slope if slope > 0 else None
