"""The papers' experiments: what is varied in the last phase of a recipe, and what they found.

Gupta et al. 2023 (arXiv 2308.04014) and Ibrahim et al. 2024 (arXiv 2403.08763) measured these on 405M to
10B parameters. What a run of one's own data shows at a small size tells which way a knob turns, not where
to set it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tokenization.errors import UserError, did_you_mean
from trainer.recipe.schema import Phase, Recipe

Change = dict[str, Any]
"""Fields of the last phase, and what they become."""


@dataclass(frozen=True)
class ArmSpec:
    """One arm of a study: the recipe with these overrides."""

    name: str
    overrides: tuple[str, ...]
    """Each is `field=value` without a blank, so that a line of a file holds them all."""


@dataclass(frozen=True)
class Study:
    """A question, and the arms that answer it."""

    question: str
    found: str
    """What the papers found, and where."""
    changes: Callable[[Recipe], Iterator[tuple[str, Change]]]
    """Per arm its name and what it changes in the last phase."""
    allow: tuple[str, ...] = ()
    """Refusals that are the experiment itself."""


def arm_specs(name: str, recipe: Recipe) -> list[ArmSpec]:
    """Return the arms of the study `name` of a recipe.

    Raises:
        UserError: there is no such study, or the recipe has nothing for it to vary.
    """
    study = find_study(name)
    phase = len(recipe.phases) - 1
    arms = []
    for arm, change in study.changes(recipe):
        fields = {f"phases.{phase}.{field}": value for field, value in change.items()}
        if study.allow:
            fields["allow"] = sorted({*recipe.allow, *study.allow})
        arms.append(ArmSpec(arm, tuple(f"{field}={_flow(value)}" for field, value in fields.items())))
    return arms


def find_study(name: str) -> Study:
    """Return the study of that name.

    Raises:
        UserError: there is none.
    """
    if name not in STUDIES:
        fix = did_you_mean(name, STUDIES) or f"studies are {', '.join(STUDIES)}"
        raise UserError("is not a study", field="NAME", value=name, fix=fix)
    return STUDIES[name]


def _flow(value: Any) -> str:
    """Return YAML on one line without blanks."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def _replay(recipe: Recipe) -> Iterator[tuple[str, Change]]:
    for share in ("0", "1", "5", "10", "25", "50"):
        yield f"replay-{share}", {"mixture": _mixture(recipe, Fraction(int(share), 100))}


def _mixture(recipe: Recipe, share: Fraction) -> Change:
    """Return the last phase's mixture with this share of replay; within a role the proportions stay."""
    replayed = {name for name, source in recipe.sources.items() if source.role == "replay"}
    if not replayed:
        raise UserError(
            "has no source of role replay", field="sources", fix="add text of the base's distribution"
        )
    (last, *later) = recipe.phases[-1].mixture[::-1]
    if later:
        field = f"phases.{len(recipe.phases) - 1}.mixture"
        raise UserError("changes within the phase", field=field, fix="give it one mixture")
    given = {name: weight for name, weight in last.weights.items() if weight}
    total = {role: sum(given[name] for name in given if (name in replayed) == role) for role in (True, False)}
    if last.replay_ratio is not None or not (total[True] and total[False]):
        return {"replay_ratio": str(share)}  # split within a role by size
    parts = {True: share, False: 1 - share}
    return {
        name: str(weight / total[name in replayed] * parts[name in replayed])
        for name, weight in given.items()
        if parts[name in replayed]
    }


def _curve(phase: Phase, **fields: Any) -> Change:
    """Return a schedule of other fields between the same learning rates."""
    schedule = phase.schedule
    kept = {"max_lr": schedule.max_lr, "warmup": str(schedule.warmup), "lr_scale": schedule.lr_scale}
    return {name: value for name, value in {**kept, **fields}.items() if value not in (None, {})}


def _low(phase: Phase) -> float:
    """Return the last learning rate."""
    low = phase.schedule.min_lr
    return low if low else phase.schedule.max_lr / 10


def _max_lr(recipe: Recipe) -> Iterator[tuple[str, Change]]:
    phase = recipe.phases[-1]
    yield "constant", {"schedule": _curve(phase, kind="constant", max_lr=_low(phase), warmup="0")}
    for name, factor in (("half", 0.5), ("same", 1.0), ("twice", 2.0)):
        high, low = phase.schedule.max_lr * factor, _low(phase) * factor
        yield f"max-lr-{name}", {"schedule": _curve(phase, kind="cosine", max_lr=high, min_lr=low)}


def _warmup(recipe: Recipe) -> Iterator[tuple[str, Change]]:
    phase = recipe.phases[-1]
    for share in ("0", "0.5", "1", "2", "10"):
        curve = _curve(phase, kind="cosine", min_lr=_low(phase), warmup=f"{share}%")
        yield f"warmup-{share}", {"schedule": curve}


def _schedule(recipe: Recipe) -> Iterator[tuple[str, Change]]:
    phase = recipe.phases[-1]
    low = _low(phase)
    yield "cosine", {"schedule": _curve(phase, kind="cosine", min_lr=low)}
    for shape in ("cosine", "inverse_sqrt"):
        curve = _curve(phase, kind="infinite", min_lr=low, cooldown_shape=shape)
        yield f"infinite-{shape.replace('_', '-')}", {"schedule": curve}
    yield "wsd", {"schedule": _curve(phase, kind="wsd", min_lr=low)}
    yield "constant", {"schedule": _curve(phase, kind="constant")}


def _same_data(recipe: Recipe) -> Iterator[tuple[str, Change]]:
    for name, change in _max_lr(recipe):
        arm = "going-on" if name == "constant" else name.replace("max-lr", "re-warmed")
        yield arm, {"mixture": _mixture(recipe, Fraction(1)), **change}


STUDIES: dict[str, Study] = {
    "replay": Study(
        "How much of the old data has to be replayed?",
        "1 % of replay removes more than half of the forgetting, 5 to 25 % nearly all of it, at a small cost "
        "downstream (Ibrahim et al. 2024)",
        _replay,
    ),
    "max_lr": Study(
        "How far should the learning rate be re-warmed?",
        "a larger max_lr ends better downstream and worse upstream; with a short budget a small one is the "
        "safe choice (Gupta et al. 2023; Ibrahim et al. 2024)",
        _max_lr,
    ),
    "warmup": Study(
        "How long should the warm-up be?",
        "its length does not change where a long run ends; without one there is a transient spike "
        "(Gupta et al. 2023)",
        _warmup,
    ),
    "schedule": Study(
        "Which curve, if more data may come later?",
        "infinite schedules end as cosine does, and can go on without a re-warm (Ibrahim et al. 2024)",
        _schedule,
    ),
    "same_data": Study(
        "What does a re-warm do on the data that the base was trained on?",
        "it hurts, the more the larger max_lr, and was not recovered in 50B tokens (Gupta et al. 2023)",
        _same_data,
        allow=("rewarm_on_same_data",),
    ),
}
"""By the name that the command takes."""
