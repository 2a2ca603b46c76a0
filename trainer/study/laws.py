"""Laws of loss, fitted to the arms of a study: parameters with intervals, residuals, and a back-test.

Every law is a function of what an arm was (weights, tokens, replay, learning rates) with a few parameters.
Tokens and weights enter as shares of the largest that were measured, so that every factor has the unit of
the loss: bits per byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from trainer.scheduler.curves import Floats

BOOTSTRAPS = 200
"""Fits of the wild bootstrap."""

STARTS = 48
"""Random starts of a fit, of which the best few are followed to their end."""

FOLLOWED = 6

FEWEST_ARMS = 3

LARGEST_SIZE, LONGEST_BUDGET = "the largest size", "the longest budget"
SECOND_HALF = "the second half of the tokens"
"""What a back-test holds out."""


@dataclass(frozen=True)
class Observations:
    """Losses that were measured, and what each depends on."""

    loss: Floats
    """Bits per byte [n]."""
    inputs: Mapping[str, Floats]
    """By the law's names for them [n]."""
    arm: npt.NDArray[np.int64]
    """The arm of each: points of one curve err together."""
    reference: Mapping[str, float]
    """The largest `tokens` and `weights`, of which the law takes shares."""

    def __len__(self) -> int:
        return int(self.loss.size)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Observations:
        """Return some of them."""
        some = {name: values[chosen] for name, values in self.inputs.items()}
        return replace(self, loss=self.loss[chosen], inputs=some, arm=self.arm[chosen])

    def varies(self, name: str) -> bool:
        """Tell whether an input has more than one value."""
        return len(self) > 0 and bool(np.ptp(self.inputs[name]) > 1e-12 * np.abs(self.inputs[name]).max())

    def share(self, name: str) -> Floats:
        """Return an input as a share of the largest that was measured."""
        return np.asarray(self.inputs[name] / self.reference[name])


@dataclass(frozen=True)
class LawParameter:
    """A parameter of a law: where it may be, and where a fit starts looking for it."""

    name: str
    low: float
    high: float
    starts: tuple[float, float]
    needs: tuple[str, ...] = ()
    """Inputs of which one must vary for it to be known; otherwise it is held at `held`."""
    held: float = 0.0


@dataclass(frozen=True)
class Law:
    """A formula for the loss."""

    name: str
    formula: str
    source: str
    inputs: tuple[str, ...]
    parameters: tuple[LawParameter, ...]
    predict: Callable[[Mapping[str, float], Observations], Floats]
    """Return the loss of each point."""

    def free_for(self, data: Observations) -> list[LawParameter]:
        """Return the parameters that data can decide: those whose input varies."""
        return [one for one in self.parameters if not one.needs or any(map(data.varies, one.needs))]


@dataclass(frozen=True)
class LawFit:
    """A law with the parameters that fit best."""

    law: Law
    values: dict[str, float]
    free: tuple[str, ...]
    """Parameters that the data could decide; the others are held."""
    data: Observations
    samples: tuple[dict[str, float], ...] = ()
    """The parameters of each fit of the bootstrap."""

    @property
    def residuals(self) -> Floats:
        """Measured less predicted loss of each point."""
        return np.asarray(self.data.loss - self.law.predict(self.values, self.data))

    @property
    def relative_error(self) -> float:
        """Mean of |measured − predicted| / measured."""
        return relative_error(self.data.loss, self.law.predict(self.values, self.data))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of a parameter over the fits of the bootstrap."""
        found = [sample[name] for sample in self.samples] or [self.values[name]]
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Return what a page or a program shows of it."""
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "source": self.law.source,
            "reference": dict(self.data.reference),
            "points": len(self.data),
            "arms": len(set(self.data.arm.tolist())),
            "parameters": {
                name: {"value": value, "interval": self.interval(name), "free": name in self.free}
                for name, value in self.values.items()
            },
            "relative_error": self.relative_error,
            "measured": self.data.loss.tolist(),
            "predicted": self.law.predict(self.values, self.data).tolist(),
        }


@dataclass(frozen=True)
class BackTest:
    """What a law, fitted on a part of the points, predicts of the others."""

    law: str
    held_out: str
    """Which points it had not seen."""
    measured: Floats
    predicted: Floats
    before: Floats
    """What one would say without a law: the last that was seen of the same arm, or the mean."""

    @property
    def error(self) -> float:
        """Mean relative error of the prediction."""
        return relative_error(self.measured, self.predicted)

    @property
    def error_without(self) -> float:
        """Mean relative error of `before`."""
        return relative_error(self.measured, self.before)

    def to_json(self) -> dict[str, Any]:
        """Return what a page or a program shows of it."""
        arrays = {name: getattr(self, name).tolist() for name in ("measured", "predicted", "before")}
        told = {"law": self.law, "held_out": self.held_out, "error": self.error}
        return {**told, "error_without": self.error_without, **arrays}


def relative_error(measured: Floats, predicted: Floats) -> float:
    """Return the mean of |measured − predicted| / measured."""
    return float(np.mean(np.abs(measured - predicted) / np.abs(measured)))


def _d_cpt(p: Mapping[str, float], data: Observations) -> Floats:
    ratio = data.inputs["ratio"]
    with np.errstate(divide="ignore"):
        size = p["A"] / data.share("weights") ** p["alpha"]
        tokens = p["B"] * ratio ** p["eta"] / data.share("tokens") ** p["beta"]
    return np.asarray(p["E"] + size + tokens + p["C"] / (ratio + p["epsilon"]) ** p["gamma"])


D_CPT_LAW = Law(
    "D-CPT",
    "L = E + A/N^alpha + B·r^eta/D^beta + C/(r + epsilon)^gamma",
    "D-CPT law, arXiv 2406.01375; r is the share of the scored text in the mixture",
    ("weights", "tokens", "ratio"),
    (
        LawParameter("E", 0.0, np.inf, (0.0, 2.0)),
        LawParameter("A", 0.0, np.inf, (0.01, 1.0), needs=("weights",)),
        LawParameter("alpha", 0.01, 3.0, (0.1, 1.0), needs=("weights",), held=1.0),
        LawParameter("B", 0.0, np.inf, (0.01, 1.0), needs=("tokens",)),
        LawParameter("eta", 0.0, 4.0, (0.1, 1.5), needs=("ratio",)),
        LawParameter("beta", 0.01, 3.0, (0.1, 1.0), needs=("tokens",), held=1.0),
        LawParameter("C", 0.0, np.inf, (0.001, 0.5), needs=("ratio",)),
        LawParameter("epsilon", 1e-4, 1.0, (0.001, 0.3), needs=("ratio",), held=1.0),
        LawParameter("gamma", 0.01, 4.0, (0.1, 1.5), needs=("ratio",), held=1.0),
    ),
    _d_cpt,
)


def _forgetting(p: Mapping[str, float], data: Observations) -> Floats:
    kept = (1 + p["B"] * data.inputs["replay"]) * data.share("weights")
    return np.asarray(data.inputs["base"] + p["A"] * data.share("tokens") ** p["b"] / kept ** p["a"] + p["E"])


FORGETTING_LAW = Law(
    "forgetting",
    "L = L0 + A·D^b/((1 + B·p)·N)^a + E",
    "Bethune et al. 2025, arXiv 2502.06042; L0 is the base's loss, p the share of replay",
    ("weights", "tokens", "replay", "base"),
    (
        LawParameter("A", 0.0, np.inf, (0.05, 3.0)),
        LawParameter("b", 0.0, 3.0, (0.1, 1.0), needs=("tokens",)),
        LawParameter("B", 0.0, 1e7, (1.0, 1e4), needs=("replay",)),
        LawParameter("a", 0.01, 3.0, (0.1, 1.0), needs=("weights", "replay"), held=1.0),
        LawParameter("E", -np.inf, np.inf, (-0.1, 0.1)),
    ),
    _forgetting,
)


def _dynamics(p: Mapping[str, float], data: Observations) -> Floats:
    forward, annealed = data.inputs["forward_area"], data.inputs["annealing_area"]
    trained = p["A"] * (p["S0"] + forward) ** -p["alpha"]
    shifted = p["B"] * (1 - (1 + p["K"] * forward) ** -p["beta"])
    return np.asarray(p["L0"] + trained - p["C"] * annealed + shifted)


DYNAMICS_LAW = Law(
    "learning dynamics",
    "L = L0 + A·(S0 + S1)^-alpha − C·S2 + B·(1 − (1 + K·S1)^-beta)",
    "Wang et al. 2025, arXiv 2505.07796; S1 is the sum of the learning rates, S2 the annealing area, and S0 "
    "what the base had",
    ("forward_area", "annealing_area"),
    (
        LawParameter("L0", 0.0, np.inf, (0.0, 3.0)),
        LawParameter("A", 0.0, np.inf, (0.01, 2.0)),
        LawParameter("S0", 1e-3, 1e3, (0.05, 10.0)),
        LawParameter("alpha", 0.01, 3.0, (0.1, 1.0)),
        LawParameter("C", 0.0, np.inf, (0.01, 2.0), needs=("annealing_area",)),
        LawParameter("B", -np.inf, np.inf, (-2.0, 2.0)),
        LawParameter("K", 1e-3, 1e6, (0.1, 100.0)),
        LawParameter("beta", 0.01, 3.0, (0.1, 1.0)),
    ),
    _dynamics,
)
"""Its areas are shares of the largest forward area that was measured."""

LAWS = {law.name: law for law in (D_CPT_LAW, FORGETTING_LAW, DYNAMICS_LAW)}


def fit_law(law: Law, data: Observations, seed: int = 0, bootstraps: int = BOOTSTRAPS) -> LawFit | None:
    """LawFit a law by least squares, with a wild bootstrap over arms; None if the points are too few for it.

    Parameters whose input has one value only are held. The fits of the bootstrap take the predicted losses
    and add what an arm's residuals have in common with one random sign, and the rest of each with another
    (Rademacher weights), so that the design, such as the only arm without replay, stays.
    """
    free = law.free_for(data)
    if len(data) <= len(free) or len(set(data.arm.tolist())) < FEWEST_ARMS:
        return None
    held = {one.name: one.held for one in law.parameters if one not in free}
    random = np.random.default_rng(seed)
    best = _search(law, data, free, held, random)
    predicted = law.predict(best, data)
    residuals = (data.loss - predicted) * np.sqrt(len(data) / (len(data) - len(free)))
    arms, place = np.unique(data.arm, return_inverse=True)
    shared = (np.bincount(place, residuals) / np.bincount(place))[place]
    samples = []
    for _ in range(bootstraps):
        of_arm, of_point = (random.choice([-1.0, 1.0], count) for count in (arms.size, len(data)))
        moved = of_arm[place] * shared + of_point * (residuals - shared)
        drawn = replace(data, loss=predicted + moved)
        samples.append(_descend(law, drawn, free, held, [best[one.name] for one in free], most=12)[0])
    return LawFit(law, best, tuple(one.name for one in free), data, tuple(samples))


def _search(
    law: Law,
    data: Observations,
    free: Sequence[LawParameter],
    held: Mapping[str, float],
    random: np.random.Generator,
) -> dict[str, float]:
    """Return the best parameters from many starts, each positive one drawn on a logarithmic scale."""
    starts = [[_start(one, random) for one in free] for _ in range(STARTS)]
    costs = [float(np.square(_residuals(law, data, free, held, start)).sum()) for start in starts]
    followed = [_descend(law, data, free, held, starts[place]) for place in np.argsort(costs)[:FOLLOWED]]
    return min(followed, key=lambda found: found[1])[0]


def _start(parameter: LawParameter, random: np.random.Generator) -> float:
    low, high = parameter.starts
    if low > 0:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))
    return float(random.uniform(low, high))


def _residuals(
    law: Law, data: Observations, free: Sequence[LawParameter], held: Mapping[str, float], at: Sequence[float]
) -> Floats:
    values = {**held, **{one.name: float(value) for one, value in zip(free, at, strict=True)}}
    found = data.loss - law.predict(values, data)
    return np.nan_to_num(found, nan=1e3, posinf=1e3, neginf=-1e3)


def _descend(
    law: Law,
    data: Observations,
    free: Sequence[LawParameter],
    held: Mapping[str, float],
    at: Sequence[float],
    most: int = 300,
) -> tuple[dict[str, float], float]:
    """Follow a start to its end; return the parameters and their cost."""
    bounds = ([one.low for one in free], [one.high for one in free])
    inside = np.clip(at, *bounds)
    found = least_squares(
        lambda theta: _residuals(law, data, free, held, theta), inside, bounds=bounds, x_scale="jac",
        max_nfev=most,
    )  # fmt: skip
    values = {**held, **{one.name: float(value) for one, value in zip(free, found.x, strict=True)}}
    return {one.name: values[one.name] for one in law.parameters}, float(found.cost)


def back_tests(law: Law, data: Observations) -> list[BackTest]:
    """Fit on the smaller sizes, the shorter budgets and the first half of the tokens, and predict the rest.

    A split that leaves too few points to fit, or none to predict, is left out.
    """
    found = []
    for held_out, seen in _splits(data):
        if not seen.any() or seen.all():
            continue
        fit = fit_law(law, data.only(seen), bootstraps=0)
        if fit is None:
            continue
        rest = data.only(~seen)
        before = _without_law(data.only(seen), rest)
        found.append(
            BackTest(law.name, held_out, rest.loss, np.asarray(law.predict(fit.values, rest)), before)
        )
    return found


def _splits(data: Observations) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    splits = []
    if "weights" in data.inputs and data.varies("weights"):
        splits.append((LARGEST_SIZE, data.inputs["weights"] < data.inputs["weights"].max()))
    ends = np.array([data.inputs["tokens"][data.arm == one].max() for one in data.arm])
    if ends.min() < ends.max():
        splits.append((LONGEST_BUDGET, ends < ends.max()))
    splits.append((SECOND_HALF, data.inputs["tokens"] <= ends / 2))
    return splits


def _without_law(seen: Observations, rest: Observations) -> Floats:
    found = []
    for arm in rest.arm:
        own = np.flatnonzero(seen.arm == arm)
        last = own[np.argmax(seen.inputs["tokens"][own])] if own.size else None
        found.append(float(seen.loss[last]) if last is not None else float(seen.loss.mean()))
    return np.array(found)


def annealing_areas(rates: Sequence[float], memory: float = 0.99) -> tuple[Floats, Floats]:
    """Return the forward area and the annealing area after each step of a learning rate.

    S1 is the sum of the learning rates; S2 sums m_i = memory · m_{i−1} + (lr_{i−1} − lr_i), the momentum of
    its fall (arXiv 2408.11029, which arXiv 2505.07796 takes up). A step's own learning rate counts.
    """
    lr = np.asarray(rates, dtype=np.float64)
    fall, area, areas = 0.0, 0.0, []
    for before, now in zip([lr[0], *lr[:-1]], lr, strict=True):
        fall = memory * fall + (before - now)
        area += fall
        areas.append(area)
    return np.cumsum(lr), np.array(areas)
