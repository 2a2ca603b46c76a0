"""What the arms of a study have measured, as the laws take it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.errors import UserError
from trainer.metrics import names
from trainer.recipe.load import load_recipe
from trainer.report.runs import finite, gather_runs
from trainer.storage.run_directory import RunDirectory
from trainer.study.laws import (
    BOOTSTRAPS,
    D_CPT_LAW,
    DYNAMICS_LAW,
    FORGETTING_LAW,
    BackTest,
    Law,
    LawFit,
    Observations,
    annealing_areas,
    back_tests,
    fit_law,
)
from trainer.study.results import RECORD, Arm, ScoreCurve, read_results

BEGINNING = 0.1
"""Share of an arm's tokens whose scores no law is fitted to, if its warm-up is not longer."""

_UNLIKE = ("average.", "sources.")
"""Fields of arms that no law is about: averages of two models, and other text than the recipe's."""

LEAST_WEIGHTS = 15e6
"""Fewer weights than this show signs and not ratios (Olmix, arXiv 2602.12237)."""


@dataclass(frozen=True)
class Knobs:
    """What an arm's recipe sets of the three questions, and the shape of its schedule."""

    replay: float
    max_lr: float
    warmup: float
    """As a share of the phase."""
    kind: str

    @property
    def schedule(self) -> tuple[float, float, str]:
        """All but the replay."""
        return self.max_lr, self.warmup, self.kind


@dataclass(frozen=True)
class StudiedArm:
    """An arm that ended with numbers, and how its recipe was set."""

    arm: Arm
    knobs: Knobs
    study: Path

    @property
    def downstream(self) -> float:
        """Bits per byte at the end."""
        return self.arm.downstream.end


@dataclass(frozen=True)
class AskedLaw:
    """A law, a validation set, and what arms measured of it."""

    law: Law
    stream: str
    data: Observations | None
    """None if nothing was measured that the law takes."""

    @property
    def varied(self) -> bool:
        """Whether what the law is about varies: one of mixtures tells nothing of arms that have only one."""
        about = "replay" if "weights" in self.law.inputs else "forward_area"
        return self.data is not None and self.data.varies(about)


@dataclass(frozen=True)
class FittedLaw:
    """A law on one validation set, and how it predicts what it has not seen."""

    stream: str
    fit: LawFit
    tests: tuple[BackTest, ...]

    @property
    def distrust(self) -> str:
        """Why it is not to be relied on: it foresaw no better than no law; empty if it did."""
        if not self.tests:
            return "it could not be back-tested"
        worst = max(self.tests, key=lambda test: test.error / max(test.error_without, 1e-12))
        if worst.error < worst.error_without:
            return ""
        return (
            f"it predicted {worst.held_out} within {worst.error:.2%}, and without a law one would have been "
            f"within {worst.error_without:.2%}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a page or a program shows of it."""
        tests = [test.to_json() for test in self.tests]
        return {"stream": self.stream, **self.fit.to_json(), "back_tests": tests}

    def to_text(self) -> str:
        """Return the same as lines of text."""
        fit = self.fit
        told = [f"{self.stream}: {fit.law.name}, {fit.law.formula}", f"  {fit.law.source}"]
        for name, value in fit.values.items():
            low, high = fit.interval(name)
            sure = f"[{low:.4g}, {high:.4g}]" if name in fit.free else "held: what it stands for did not vary"
            told.append(f"  {name:<8} {value:.4g} {sure}")
        arms = len(set(fit.data.arm.tolist()))
        worst = float(np.abs(fit.residuals).max())
        told.append(
            f"  {len(fit.data)} scores of {arms} arms: mean relative error {fit.relative_error:.2%}, "
            f"largest residual {worst:.4f} bits per byte"
        )
        told += [
            f"  back-test, {test.held_out}: mean relative error {test.error:.2%} "
            f"({test.error_without:.2%} without a law)"
            for test in self.tests
        ]
        return "\n".join(told)


def studied_arms(directories: Iterable[str | Path]) -> list[StudiedArm]:
    """Return the arms that ended with finite scores; a directory may hold studies in its folders.

    Raises:
        UserError: a directory is not a study's and holds none, or a run of one is damaged.
    """
    found = []
    for directory in map(Path, directories):
        own = (directory / RECORD).is_file()
        inner = sorted(path.parent for path in directory.glob(f"*/{RECORD}"))
        if not own and not inner:
            fix = "give the --out of `rewarm study`, or the folder above several"
            raise UserError("is not the directory of a study", field="DIR", value=str(directory), fix=fix)
        for study in [directory] if own else inner:
            found += [one for arm in read_results(study) if (one := _studied(arm, study)) is not None]
    return found


def _studied(arm: Arm, study: Path) -> StudiedArm | None:
    recipe = RunDirectory(arm.directory).recipe
    ends = (arm.upstream.base, arm.upstream.end, arm.downstream.end)
    sound = arm.finished and not arm.diverged and not arm.from_scratch and all(map(finite, ends))
    unlike = any(field.startswith(_UNLIKE) for field in arm.fields)
    if not sound or unlike or arm.replay is None or not recipe.is_file():
        return None
    phase = load_recipe(recipe).phases[-1]
    warmup = float(phase.schedule.warmup.of(phase.tokens)) / phase.tokens
    return StudiedArm(arm, Knobs(arm.replay, phase.schedule.max_lr, warmup, phase.schedule.kind), study)


def of_one_schedule(arms: Sequence[StudiedArm]) -> list[StudiedArm]:
    """Return the arms whose schedule most of them have, so that their replay alone tells them apart."""
    if not arms:
        return []
    usual = Counter(one.knobs.schedule for one in arms).most_common(1)[0][0]
    return [one for one in arms if one.knobs.schedule == usual]


def of_one_replay(arms: Sequence[StudiedArm]) -> list[StudiedArm]:
    """Return the arms of the share of replay that has the most different schedules; none if all have one."""
    schedules: dict[float, set[tuple[float, float, str]]] = {}
    for one in arms:
        schedules.setdefault(one.knobs.replay, set()).add(one.knobs.schedule)
    if max(map(len, schedules.values()), default=0) < 2:
        return []
    usual = max(schedules, key=lambda replay: len(schedules[replay]))
    return [one for one in arms if one.knobs.replay == usual]


def observe_mixture(arms: Sequence[StudiedArm], stream: str) -> Observations | None:
    """Return the scores on `stream` with weights, tokens, replay, its own share, and the base's score."""
    rows = []
    for number, one in enumerate(arms):
        curve, replay = _scores(one.arm, stream), one.knobs.replay
        ratio = replay if stream == "upstream" else 1 - replay
        for tokens, loss in _points(one, curve):
            rows.append((number, loss, one.arm.parameters, tokens, replay, ratio, curve.base))
    if not rows or not all(row[2] for row in rows):
        return None
    number, loss, weights, tokens, replay, ratio, base = np.array(rows, dtype=np.float64).T
    inputs = {"weights": weights, "tokens": tokens, "replay": replay, "ratio": ratio, "base": base}
    reference = {"weights": float(weights.max()), "tokens": float(tokens.max())}
    return Observations(loss, inputs, number.astype(np.int64), reference)


def observe_dynamics(arms: Sequence[StudiedArm], stream: str) -> Observations | None:
    """Return the scores on `stream` with the areas of the learning rate that each run recorded."""
    rows = []
    for number, one in enumerate(arms):
        forward, annealed, steps = _areas(one.arm)
        for tokens, loss in _points(one, _scores(one.arm, stream)):
            step = min(int(np.searchsorted(steps, tokens, side="right")), len(steps)) - 1
            if step >= 0:
                rows.append((number, loss, tokens, forward[step], annealed[step]))
    if not rows:
        return None
    number, loss, tokens, area, annealing = np.array(rows, dtype=np.float64).T
    largest = float(area.max())
    inputs = {"tokens": tokens, "forward_area": area / largest, "annealing_area": annealing / largest}
    return Observations(loss, inputs, number.astype(np.int64), {"forward_area": largest})


def _areas(arm: Arm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return forward area, annealing area and tokens after each step; unlogged steps are interpolated."""
    (history,) = gather_runs([arm.directory])
    start = history.tokens - arm.tokens
    found = [
        (record["step"], record["tokens"] - start, float(record[names.LR]))
        for record in history.records
        if names.LR in record and record["tokens"] > start
    ]
    if len(found) < 2:
        return np.empty(0), np.empty(0), np.empty(0)
    step, tokens, lr = np.array(found, dtype=np.float64).T
    every = np.arange(step[0], step[-1] + 1)
    forward, annealed = annealing_areas(np.interp(every, step, lr).tolist())
    return forward, annealed, np.interp(every, step, tokens)


def _scores(arm: Arm, stream: str) -> ScoreCurve:
    return arm.upstream if stream == "upstream" else arm.downstream


def _points(one: StudiedArm, curve: ScoreCurve) -> list[tuple[int, float]]:
    """Return tokens and finite scores from where the warm-up and its spike are over."""
    start = max(BEGINNING, one.knobs.warmup) * one.arm.tokens
    pairs = zip(curve.tokens, curve.bits_per_byte, strict=True)
    return [(when, bits) for when, bits in pairs if when > start and finite(bits)]


def fit_forgetting(arms: Sequence[StudiedArm], bootstraps: int = BOOTSTRAPS) -> FittedLaw | None:
    """LawFit the law of forgetting to arms of one schedule; None if they are too few for it."""
    data = observe_mixture(of_one_schedule(arms), "upstream")
    return fit_asked(AskedLaw(FORGETTING_LAW, "upstream", data), bootstraps)


def fit_all(arms: Sequence[StudiedArm], bootstraps: int = BOOTSTRAPS) -> list[FittedLaw]:
    """LawFit every law on every validation set where there are scores enough."""
    found = [fit_asked(asked, bootstraps) for asked in asked_laws(arms)]
    return [one for one in found if one is not None]


def asked_laws(arms: Sequence[StudiedArm]) -> list[AskedLaw]:
    """Return every law with each validation set that it is about, and what the arms measured for it."""
    mixed, scheduled = of_one_schedule(arms), of_one_replay(arms)
    return [
        AskedLaw(FORGETTING_LAW, "upstream", observe_mixture(mixed, "upstream")),
        AskedLaw(D_CPT_LAW, "upstream", observe_mixture(mixed, "upstream")),
        AskedLaw(D_CPT_LAW, "downstream", observe_mixture(mixed, "downstream")),
        AskedLaw(DYNAMICS_LAW, "upstream", observe_dynamics(scheduled, "upstream")),
        AskedLaw(DYNAMICS_LAW, "downstream", observe_dynamics(scheduled, "downstream")),
    ]


def fit_asked(asked: AskedLaw, bootstraps: int = BOOTSTRAPS) -> FittedLaw | None:
    """LawFit a law if what it is about varies, and there are scores enough."""
    if asked.data is None or not asked.varied:
        return None
    fit = fit_law(asked.law, asked.data, bootstraps=bootstraps)
    return None if fit is None else FittedLaw(asked.stream, fit, tuple(back_tests(asked.law, asked.data)))
