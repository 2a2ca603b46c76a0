"""The papers' findings as contrasts between arms, which seeds can decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from trainer.study.results import Arm

LITTLE = 0.01
"""A difference below this share of the loss counts as none."""

EARLY = 0.1
"""The damage of a re-warm is looked at in the first score after this share of the phase's tokens."""

Measure = Callable[[Arm], float]
Arms = Mapping[str, Arm]
"""The arms of one seed by name."""


@dataclass(frozen=True)
class Contrast:
    """A number of one seed, on which a finding depends."""

    text: str
    """What the number is."""
    arms: tuple[str, ...]
    value: Callable[[Arms], float]
    scale: Callable[[Arms], float]
    """The loss that `LITTLE` is a share of."""
    expected: Literal["above zero", "near zero"]


@dataclass(frozen=True)
class Claim:
    """A finding: all of its contrasts come out as expected."""

    name: str
    paper: str
    contrasts: tuple[Contrast, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it needs."""
        return tuple(dict.fromkeys(arm for contrast in self.contrasts for arm in contrast.arms))


def _forgetting(arm: Arm) -> float:
    return arm.forgetting


def _upstream(arm: Arm) -> float:
    return arm.upstream.end


def _downstream(arm: Arm) -> float:
    return arm.downstream.end


def _early_upstream(arm: Arm) -> float:
    return arm.upstream.after(EARLY * arm.tokens)


_MEASURES: dict[str, Measure] = {
    "forgetting": _forgetting,
    "upstream": _upstream,
    "downstream": _downstream,
    "upstream soon after the start": _early_upstream,
}


def worse(measure: str, one: str, other: str) -> Contrast:
    """Return the contrast by which `one` has a higher loss than `other`."""
    return _difference(measure, one, other, "above zero")


def near(measure: str, one: str, other: str) -> Contrast:
    """Return the contrast by which the losses of two arms differ by less than 1 %."""
    return _difference(measure, one, other, "near zero")


def _difference(measure: str, one: str, other: str, expected: Literal["above zero", "near zero"]) -> Contrast:
    of = _MEASURES[measure]
    return Contrast(
        f"{measure}: {one} less {other}",
        (one, other),
        lambda arms: of(arms[one]) - of(arms[other]),
        lambda arms: _loss(measure, arms[other]),
        expected,
    )


def less_than_half(measure: str, one: str, other: str) -> Contrast:
    """Return the contrast by which `one` has less than half of what `other` has."""
    of = _MEASURES[measure]
    return Contrast(
        f"{measure}: half of {other} less {one}",
        (one, other),
        lambda arms: of(arms[other]) / 2 - of(arms[one]),
        lambda arms: _loss(measure, arms[other]),
        "above zero",
    )


def below_middle(measure: str, between: str, one: str, other: str) -> Contrast:
    """Return the contrast by which `between` has a lower loss than the mean of `one` and `other`."""
    of = _MEASURES[measure]
    return Contrast(
        f"{measure}: the mean of {one} and {other} less {between}",
        (between, one, other),
        lambda arms: (of(arms[one]) + of(arms[other])) / 2 - of(arms[between]),
        lambda arms: _loss(measure, arms[other]),
        "above zero",
    )


def _loss(measure: str, arm: Arm) -> float:
    return arm.downstream.end if measure == "downstream" else arm.upstream.end


_GUPTA = "Gupta et al. 2023, arXiv 2308.04014"
_IBRAHIM = "Ibrahim et al. 2024, arXiv 2403.08763"
_REPLAY = ("replay-0", "replay-1", "replay-5", "replay-10", "replay-25", "replay-50")

CLAIMS: dict[str, tuple[Claim, ...]] = {
    "replay": (
        Claim(
            "The more is replayed, the less is forgotten",
            _IBRAHIM,
            tuple(worse("forgetting", less, more) for less, more in pairwise(_REPLAY)),
        ),
        Claim(
            "1 % of replay removes more than half of the forgetting",
            _IBRAHIM,
            (less_than_half("forgetting", "replay-1", "replay-0"),),
        ),
        Claim("Replay has a price downstream", _IBRAHIM, (worse("downstream", "replay-50", "replay-0"),)),
    ),
    "max_lr": (
        Claim(
            "A larger max_lr learns more and forgets more",
            _GUPTA,
            (
                worse("downstream", "max-lr-half", "max-lr-twice"),
                worse("upstream", "max-lr-twice", "max-lr-half"),
            ),
        ),
        Claim(
            "Going on from the base beats training from scratch",
            _GUPTA,
            (worse("downstream", "scratch", "max-lr-same"), worse("upstream", "scratch", "max-lr-same")),
        ),
    ),
    "warmup": (
        Claim(
            "The length of the warm-up matters little at the end",
            _GUPTA,
            tuple(
                near(measure, f"warmup-{share}", "warmup-1")
                for measure in ("downstream", "upstream")
                for share in ("0", "0.5", "2", "10")
            ),
        ),
    ),
    "schedule": (
        Claim(
            "An infinite schedule ends as cosine does",
            _IBRAHIM,
            tuple(
                near(measure, arm, "cosine")
                for measure in ("downstream", "upstream")
                for arm in ("infinite-cosine", "infinite-inverse-sqrt")
            ),
        ),
    ),
    "same_data": (
        Claim(
            "A re-warm on the same data hurts, and more with a larger max_lr",
            _GUPTA,
            (
                worse("upstream soon after the start", "re-warmed-same", "going-on"),
                worse("upstream soon after the start", "re-warmed-twice", "re-warmed-half"),
            ),
        ),
        Claim(
            "The damage of a re-warm on the same data is not won back",
            _GUPTA,
            (worse("upstream", "re-warmed-same", "going-on"),),
        ),
    ),
    "restore": tuple(
        Claim(text, _GUPTA, (worse("downstream", arm, "exact"),))
        for text, arm in (
            ("A resume without the optimizer's moments ends worse", "optimizer-reset"),
            ("A resume that starts the schedule again ends worse", "schedule-restarted"),
            ("A resume at a constant learning rate ends worse", "constant"),
        )
    ),
    "new_rows": (
        Claim(
            "The mean of the sub-pieces' rows beats the mean of all rows and random rows",
            "Mundra et al. 2024, arXiv 2407.05841: rows within the hull of the base's are a good start",
            (worse("downstream", "mean", "subpiece-mean"), worse("downstream", "random", "subpiece-mean")),
        ),
    ),
    "merge": (
        Claim(
            "The average with the base has forgotten less than half and keeps more than half of the gain",
            "Alexandrov et al. 2024 (BaM), arXiv 2407.08699",
            (
                less_than_half("forgetting", "average-50", "average-100"),
                below_middle("downstream", "average-50", "average-0", "average-100"),
            ),
        ),
    ),
    "self_replay": (
        Claim(
            "Text that the base wrote itself removes more than half of the forgetting",
            "Marek et al. 2026, arXiv 2605.26097",
            (less_than_half("forgetting", "self-replay", "none"),),
        ),
    ),
}
"""By study; a study without claims asks a question of the user's own."""
