"""What a study decides of the papers' findings on this data: from paired differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from trainer.study.claims import CLAIMS, LITTLE, Claim, Contrast
from trainer.study.intervals import LEVEL, MOST_SEEDS, Interval, seeds_needed, t_interval
from trainer.study.results import Arm

Outcome = Literal["holds", "does not hold", "not decided"]

FEWEST = 3
"""Seeds that are advised where there is one: it shows no spread from which more could be said."""


@dataclass(frozen=True)
class Compared:
    """A contrast, as the seeds show it."""

    contrast: Contrast
    interval: Interval
    """Of the paired differences, at 95 %."""
    margin: float
    """Bits per byte that count as no difference."""
    outcome: Outcome
    needed: int | None
    """Seeds that would decide it; None if it is decided, or if `MOST_SEEDS` would not do."""
    equal: bool
    """Whether the value is 0 in every seed."""


@dataclass(frozen=True)
class Judgement:
    """What became of a finding."""

    claim: Claim
    size: str
    outcome: Outcome
    reason: str
    seeds: tuple[int, ...]
    """Those in which all arms of the finding ended."""
    compared: tuple[Compared, ...] = ()


def judge_study(study: str, arms: Sequence[Arm]) -> list[Judgement]:
    """Return a verdict on each of the papers' findings that a study is about, size by size."""
    sizes = dict.fromkeys(arm.size for arm in arms) or {"": None}
    return [
        judge_claim(claim, [arm for arm in arms if arm.size == size], size)
        for size in sizes
        for claim in CLAIMS.get(study, ())
    ]


def judge_claim(claim: Claim, arms: Sequence[Arm], size: str = "") -> Judgement:
    """Return a verdict on a finding from arms of one size.

    Differences are taken seed by seed, between arms that share data order and start, and each mean has its
    t interval. The finding holds if every contrast does at the 95 % level, and does not hold if one contrast
    is against it at a level that is corrected for their number (Bonferroni). It is never decided by one seed,
    nor where an arm is missing or has diverged.
    """
    if problem := _unfit(claim, arms):
        return Judgement(claim, size, "not decided", problem, ())
    seeds = tuple(sorted(_common(claim, arms)))
    by_seed = [{arm.name: arm for arm in arms if arm.seed == seed} for seed in seeds]
    compared = []
    for contrast in claim.contrasts:
        values = [contrast.value(one) for one in by_seed]
        margin = LITTLE * fmean(contrast.scale(one) for one in by_seed)
        compared.append(compare_values(contrast, values, margin, len(claim.contrasts)))
    if any(not math.isfinite(one.interval.mean) for one in compared):
        reason = "a score that it needs was not measured"
        return Judgement(claim, size, "not decided", reason, seeds, tuple(compared))
    outcomes = {one.outcome for one in compared}
    outcome: Outcome = (
        "does not hold" if "does not hold" in outcomes
        else "not decided" if "not decided" in outcomes else "holds"
    )  # fmt: skip
    reason = _reason(outcome, compared, seeds) + _same(compared)
    return Judgement(claim, size, outcome, reason, seeds, tuple(compared))


def _same(compared: Sequence[Compared]) -> str:
    """Name arms that ended equal to the last digit: what they vary may be less than a step."""
    same = [" and ".join(one.contrast.arms) for one in compared if one.equal]
    pairs = "; ".join(dict.fromkeys(same))
    return f" (equal to the last digit, so that this budget may not tell them apart: {pairs})" if same else ""


def compare_values(
    contrast: Contrast, values: Sequence[float], margin: float, contrasts: int = 1
) -> Compared:
    """Decide one contrast from its values, one per seed.

    Args:
        contrast: what is compared.
        values: its value in each seed.
        margin: bits per byte that count as no difference.
        contrasts: how many the finding has: one of them alone refutes it.
    """
    interval = t_interval(values)
    strict = t_interval(values, 1 - (1 - LEVEL) / contrasts)
    mean, spread = abs(interval.mean), interval.spread
    if contrast.expected == "above zero":
        holds = interval.low > 0
        fails = strict.high < 0 or (strict.low <= 0 and max(-strict.low, strict.high) < margin)
        distance = max(mean, margin - mean)
    else:
        holds = max(-interval.low, interval.high) < margin
        fails = strict.low > margin or strict.high < -margin
        distance = abs(margin - mean)
    outcome: Outcome = "holds" if holds else "does not hold" if fails else "not decided"
    if outcome != "not decided" or interval.count < 2 or not math.isfinite(distance):
        return Compared(contrast, interval, margin, outcome, None, not any(values))
    level = (
        LEVEL if (interval.mean > 0) == (contrast.expected == "above zero") else 1 - (1 - LEVEL) / contrasts
    )
    return Compared(contrast, interval, margin, outcome, seeds_needed(spread, distance, level), False)


def _unfit(claim: Claim, arms: Sequence[Arm]) -> str:
    """Say what hinders a verdict: an arm that is missing, has not ended or has diverged."""
    for name in claim.arms:
        own = [arm for arm in arms if arm.name == name]
        if not own:
            return f"the arm {name} is missing"
        if diverged := [str(arm.seed) for arm in own if arm.diverged]:
            return f"the arm {name} diverged (seed {', '.join(diverged)})"
        if not any(arm.finished for arm in own):
            return f"the arm {name} has not finished"
    return "" if _common(claim, arms) else "no seed has all arms that it needs"


def _common(claim: Claim, arms: Sequence[Arm]) -> set[int]:
    """Return the seeds in which all arms of a finding ended."""
    seeds = [{arm.seed for arm in arms if arm.name == name and arm.finished} for name in claim.arms]
    return set.intersection(*seeds)


def _reason(outcome: Outcome, compared: Sequence[Compared], seeds: Sequence[int]) -> str:
    """Say in a sentence what decided, or how many seeds would."""
    if len(seeds) == 1:
        return f"one seed shows no spread between seeds; at least {FEWEST} seeds are needed"
    if outcome == "holds":
        return f"every difference comes out so with {len(seeds)} seeds"
    chosen = [one for one in compared if one.outcome == outcome]
    if outcome == "does not hold":
        return "; ".join(f"{one.contrast.text} is {one.interval}" for one in chosen)
    return _asked(chosen, len(seeds))


def _asked(open_ones: Sequence[Compared], count: int) -> str:
    """Say how many seeds would decide, if the spread between seeds stays what it is."""
    widest = max(one.interval.spread for one in open_ones)
    about = f"the spread of a difference between {count} seeds is up to {widest:.4f} bits per byte"
    if any(one.needed is None for one in open_ones):
        return f"{about}: {MOST_SEEDS} seeds would not decide it; a larger budget might"
    needed = max(one.needed or 0 for one in open_ones)
    return f"{about}: about {max(needed, count + 1)} seeds would decide it, if the spread stays so"


def verdict_lines(verdicts: Sequence[Judgement]) -> Iterator[str]:
    """Yield the verdicts as lines of text."""
    for verdict in verdicts:
        size = f" ({verdict.size})" if verdict.size else ""
        yield f"{verdict.outcome}: {verdict.claim.name}{size}; {verdict.reason}"
