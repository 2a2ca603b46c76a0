"""Synthetic runs that forget and recover, for the controller: assumed shapes, wide ranges, no language model.

Forgetting F follows F' = (F_ss(r) - F) / tau on the clock of the learning rates, with F_ss = A (odds of 5 % /
odds of r) ** g, a drift of ln A over the run, and readings with an offset (the documents), a wiggle (between
checkpoints) and, on raw weights, a hill that is as high as the learning rate.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from trainer.mixer.replay_control import (
    PARTS,
    Bounds,
    ControlSettings,
    ControlState,
    Reading,
    decide_replay,
    logit_of,
    round_reading,
)

BUDGET, START, LOWEST, HIGHEST = 0.02, 256, 2, 614
OFFSET = 0.001
AT = logit_of(0.05)


@dataclass
class Plants:
    """Many runs, in columns."""

    size: np.ndarray
    gain: np.ndarray
    lag: np.ndarray
    wiggle: np.ndarray
    offset: np.ndarray
    drift: np.ndarray
    hill: np.ndarray

    @classmethod
    def draw(cls, count, seed):
        rng = np.random.default_rng(seed)
        uniform = lambda low, high: rng.uniform(low, high, count)  # noqa: E731
        return cls(
            np.exp(uniform(np.log(0.02), np.log(0.6))),
            uniform(0.4, 1.3),
            np.exp(uniform(np.log(0.03), np.log(0.4))),
            np.exp(uniform(np.log(0.0003), np.log(0.002))),
            rng.normal(0, OFFSET, count),
            uniform(-0.7, 0.7),
            uniform(0, 0.02),
        )

    def steady(self, ratio, clock):
        """Forgetting in the long run at a ratio: [plants]."""
        logit = np.log(ratio / (1 - ratio))
        return self.size * np.exp(self.drift * clock - self.gain * (logit - AT))


def clocks(kind, decisions):
    """The clock and the relative LR at each decision, after a warm-up of 1 %."""
    t = (np.arange(decisions * 16) + 0.5) / (decisions * 16)
    warm = np.minimum(1, t / 0.01)
    fall = 0.55 + 0.45 * np.cos(np.pi * t) if kind == "cosine" else np.minimum(1, 0.1 + 4.5 * (1 - t))
    lr = warm * fall
    clock = np.cumsum(lr) / lr.sum()
    return clock[15::16], lr[15::16]


def fixed_path(plants, ratio, clock):
    """Forgetting at each decision under a fixed ratio: [decisions, plants]."""
    forgetting, path, before = np.zeros_like(plants.size), [], 0.0
    for now in clock:
        steady = plants.steady(ratio, now)
        forgetting = steady + (forgetting - steady) * np.exp(-(now - before) / plants.lag)
        path.append(forgetting)
        before = now
    return np.array(path)


def best_fixed(plants, clock):
    """The lowest fixed ratio that never breaks the budget; above the highest: NaN."""
    low, high = np.full_like(plants.size, LOWEST / PARTS), np.full_like(plants.size, HIGHEST / PARTS)
    holds = lambda ratio: fixed_path(plants, ratio, clock).max(axis=0) <= BUDGET  # noqa: E731
    possible, always = holds(high), holds(low)
    for _ in range(24):
        middle = (low + high) / 2
        good = holds(middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return np.where(possible, np.where(always, LOWEST / PARTS, high), np.nan)


def steer(plants, at, kind, decisions, *, raw=False, seed=0, sign=1, settings=None, start=START):
    """Let the controller steer plant number `at`: true forgetting, ratios and `held` at each decision."""
    rng = np.random.default_rng((seed, at))
    clock, lr = clocks(kind, decisions)
    settings = settings or ControlSettings(BUDGET)
    size, gain, lag, drift = (getattr(plants, name)[at] for name in ("size", "gain", "lag", "drift"))
    wiggle, offset, hill = plants.wiggle[at], plants.offset[at], plants.hill[at] if raw else 0.0
    state, bounds = (
        ControlState.starting_at(Fraction(start, PARTS), settings.budget, at_base=True),
        Bounds(LOWEST, HIGHEST),
    )
    ratio = coming = start / PARTS
    forgetting, before = 0.0, 0.0
    path, ratios, held = [], [], []
    for k in range(decisions):
        logit = np.log(ratio / (1 - ratio))
        steady = size * np.exp(drift * clock[k] - sign * gain * (logit - AT))
        forgetting = steady + (forgetting - steady) * np.exp(-(clock[k] - before) / lag)
        before = clock[k]
        path.append(forgetting)
        ratios.append(ratio)
        read = forgetting + offset + wiggle * rng.normal() + hill * lr[k]
        reading = Reading(
            round_reading(read), OFFSET, float(clock[k]), (k + 1) / decisions, warm=(k + 1) / decisions > 0.02
        )
        ratio = coming
        state, decided = decide_replay(settings, state, reading, bounds)
        coming = decided.parts / PARTS
        held.append(decided.held)
    return np.array(path), np.array(ratios), np.array(held)


def judge(plants, kind, decisions, **options):
    """Violations at the end and on the path, and new tokens beside the best fixed ratio, of what can hold."""
    best = best_fixed(plants, clocks(kind, decisions)[0])
    can = np.flatnonzero(~np.isnan(best))
    runs = [steer(plants, at, kind, decisions, **options) for at in can]
    ends = np.array([path[-1] > BUDGET for path, _, _ in runs])
    paths = np.array([path.max() > BUDGET + 0.002 for path, _, _ in runs])
    new = np.array([1 - ratios.mean() for _, ratios, _ in runs])
    false_alarms = np.array([not held.all() for _, _, held in runs])
    return {
        "can": len(can) / len(best),
        "end": ends.mean(),
        "path": paths.mean(),
        "new": new.sum() / (1 - best[can]).sum(),
        "alarm": false_alarms.mean(),
    }


def table(count=400, seed=7):
    """The table of docs/budget.md, in Markdown: `python -m tests.helpers.plants`."""
    policies = {
        "averaged weights": {},
        "raw weights": {"raw": True},
        "start at 50 %": {"start": 512},
        "start at 5 %": {"start": 51},
        "gain of 0.4 assumed": {"settings": ControlSettings(BUDGET, gain=0.4)},
        "gain of 1.2 assumed": {"settings": ControlSettings(BUDGET, gain=1.2)},
    }
    for label, options in policies.items():
        for decisions in (50, 100):
            found = [
                judge(Plants.draw(count, seed), kind, decisions, **options) for kind in ("cosine", "wsd")
            ]
            cells = (
                " – ".join(f"{100 * one[what]:.1f}" for one in found)
                for what in ("end", "path", "new", "alarm")
            )
            print(f"| {label} | {decisions} | {' | '.join(cells)} |")


if __name__ == "__main__":
    table()
