"""The papers' experiments: what is varied in the last phase of a recipe, and what they found.

Gupta et al. 2023 (arXiv 2308.04014) and Ibrahim et al. 2024 (arXiv 2403.08763) measured these on 405M to
10B parameters. What a run of one's own data shows at a small size tells which way a knob turns, not where
to set it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from tokenization.errors import UserError, did_you_mean
from trainer.recipe.schema import Recipe
from trainer.study.resumes import branch_arms, restore_arms
from trainer.study.spec import (
    NOTHING,
    ArmSpec,
    Change,
    Options,
    StartModel,
    combinations,
    curve_of,
    last_phase,
    lowest_lr,
    phase_fields,
)


@dataclass(frozen=True)
class Study:
    """A question, and the arms that answer it."""

    question: str
    found: str
    """What the papers found, and where."""
    arms: Callable[[Recipe, Options], Iterator[ArmSpec]]
    allow: tuple[str, ...] = ()
    """Refusals that are the experiment itself."""


def arm_specs(name: str, recipe: Recipe, options: Options = NOTHING) -> list[ArmSpec]:
    """Return the arms of the study `name` of a recipe.

    Raises:
        UserError: there is no such study, or the recipe has nothing for it to vary.
    """
    study = find_study(name)
    allow = {"allow": sorted({*recipe.allow, *study.allow})} if study.allow else {}
    return [replace(arm, fields={**arm.fields, **allow}) for arm in study.arms(recipe, options)]


def find_study(name: str) -> Study:
    """Return the study of that name.

    Raises:
        UserError: there is none.
    """
    if name not in STUDIES:
        fix = did_you_mean(name, STUDIES) or f"studies are {', '.join(STUDIES)}"
        raise UserError("is not a study", field="NAME", value=name, fix=fix)
    return STUDIES[name]


def _replay(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    for share in ("0", "1", "5", "10", "25", "50"):
        change = {"mixture": mixture_of_replay(recipe, Fraction(int(share), 100))}
        yield last_phase(recipe, f"replay-{share}", change)


def _merge(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    """Yield the model that is continued without replay, and what replay would have cost instead."""
    for share in ("0", "1", "5", "25"):
        change = {"mixture": mixture_of_replay(recipe, Fraction(int(share), 100))}
        yield last_phase(recipe, f"replay-{share}", change)


def _self_replay(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    """Yield arms without replay, with true replay, and with text that the base wrote itself."""
    for name, part in (("none", Fraction(0)), ("true-replay", OWN_SHARE)):
        yield last_phase(recipe, name, {"mixture": mixture_of_replay(recipe, part)})
    new = {name: str(part) for name, part in _new_parts(recipe, 1 - OWN_SHARE).items()}
    own = last_phase(recipe, "self-replay", {"mixture": {**new, OWN_SOURCE: str(OWN_SHARE)}})
    source = {"path": options.own_text, "role": "replay"}
    yield replace(own, fields={**own.fields, f"sources.{OWN_SOURCE}": source})


def _new_parts(recipe: Recipe, total: Fraction) -> dict[str, Fraction]:
    """Split a total over the new sources as the last mixture does.

    Raises:
        UserError: it leaves the split to the sizes of several shards.
    """
    weights = recipe.phases[-1].mixture[-1].weights
    new = [name for name, source in recipe.sources.items() if source.role == "new"]
    given = {name: weights[name] for name in new if weights.get(name)}
    if not given and len(new) == 1:
        return {new[0]: total}
    if not given:
        field = f"phases.{len(recipe.phases) - 1}.mixture"
        raise UserError("has no weights of the new sources", field=field, fix="give each its weight")
    return {name: total * weight / sum(given.values()) for name, weight in given.items()}


def mixture_of_replay(recipe: Recipe, share: Fraction) -> Change:
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


def _max_lr(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    for name, change in _rates(recipe):
        yield last_phase(recipe, name, change)
    yield from _scratch(recipe)


def _rates(recipe: Recipe) -> Iterator[tuple[str, Change]]:
    """Yield arms from the lowest learning rate to the highest."""
    phase = recipe.phases[-1]
    yield "constant", {"schedule": curve_of(phase, kind="constant", max_lr=lowest_lr(phase), warmup="0")}
    for name, factor in (("half", 0.5), ("same", 1.0), ("twice", 2.0)):
        high, low = phase.schedule.max_lr * factor, lowest_lr(phase) * factor
        yield f"max-lr-{name}", {"schedule": curve_of(phase, kind="cosine", max_lr=high, min_lr=low)}


def _scratch(recipe: Recipe) -> Iterator[ArmSpec]:
    """Yield the last phase from random weights, with the recipe's own max_lr; nothing if all arms do that."""
    if recipe.model.base is None and len(recipe.phases) == 1:
        return
    phase = recipe.phases[-1]
    alone = {**phase_fields(phase), "schedule": curve_of(phase, kind="cosine", min_lr=lowest_lr(phase))}
    yield ArmSpec("scratch", {"phases": [alone]}, 0, "random_weights" if recipe.model.base else None)


def _warmup(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    phase = recipe.phases[-1]
    for share in ("0", "0.5", "1", "2", "10"):
        curve = curve_of(phase, kind="cosine", min_lr=lowest_lr(phase), warmup=f"{share}%")
        yield last_phase(recipe, f"warmup-{share}", {"schedule": curve})


def _schedule(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    phase = recipe.phases[-1]
    low = lowest_lr(phase)
    curves = {
        "cosine": curve_of(phase, kind="cosine", min_lr=low),
        "infinite-cosine": curve_of(phase, kind="infinite", min_lr=low, cooldown_shape="cosine"),
        "infinite-inverse-sqrt": curve_of(phase, kind="infinite", min_lr=low, cooldown_shape="inverse_sqrt"),
        "wsd": curve_of(phase, kind="wsd", min_lr=low),
        "constant": curve_of(phase, kind="constant"),
    }
    for name, curve in curves.items():
        yield last_phase(recipe, name, {"schedule": curve})


def _same_data(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    for name, change in _rates(recipe):
        arm = "going-on" if name == "constant" else name.replace("max-lr", "re-warmed")
        yield last_phase(recipe, arm, {"mixture": mixture_of_replay(recipe, Fraction(1)), **change})


def _new_rows(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    if recipe.model.base is None:
        fix = "name the model with its extended vocabulary"
        raise UserError("is missing: new rows are rows beside a base's", field="model.base", fix=fix)
    kinds: tuple[StartModel, ...] = ("subpiece_mean", "mean", "random", "unextended")
    for kind in kinds:
        name = "no-extension" if kind == "unextended" else kind.replace("_", "-")
        yield ArmSpec(name, {}, 0, kind)  # whose first phases may train the new rows alone


def _grid(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    """Yield all combinations of the values of `--vary`."""
    if not options.vary:
        fix = "give for example --vary phases.0.schedule.max_lr=1e-4,3e-4"
        raise UserError("is missing: a grid has fields and values", field="--vary", fix=fix)
    for name, fields in combinations(options.vary):
        last = len(recipe.phases) - 1
        only_last = all(
            field.startswith((f"phases.{last}.", f"phases.{recipe.phases[-1].name}.")) for field in fields
        )
        yield ArmSpec(name, fields, last if only_last else 0)


OWN_SOURCE, OWN_SHARE = "own_text", Fraction(1, 4)
"""Of `self_replay`: the name of the source that the base has written, and the share of replay."""

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
    "restore": Study(
        "What does each wrong resume cost?",
        "an interruption must restore the learning rate's value and its decay: a re-warm on the same data "
        "hurts (Gupta et al. 2023)",
        restore_arms,
        allow=("rewarm_on_same_data",),
    ),
    "new_rows": Study(
        "What should the embeddings of new pieces start from?",
        "the mean of the sub-pieces' rows is cheap and near the best; at small budgets extending the "
        "vocabulary can lose to the base's own (arXiv 2401.01055)",
        _new_rows,
    ),
    "merge": Study(
        "How much of what was forgotten comes back by averaging with the base?",
        "averages of a base and its continuation forget less than the continuation (BaM, arXiv 2407.08699)",
        _merge,
    ),
    "self_replay": Study(
        "Does text that the base wrote itself replace the old data?",
        "samples of the model itself, replayed, remove nearly all forgetting where it has capacity left "
        "(Marek et al. 2026, arXiv 2605.26097)",
        _self_replay,
    ),
    "grid": Study("Which of these values is best?", "nothing: the question is your own", _grid),
    "branch": Study(
        "How should a long run end?",
        "one trunk at a constant or infinite learning rate serves many anneals (arXiv 2404.06395; Ibrahim "
        "et al. 2024)",
        branch_arms,
    ),
}
"""By the name that the command takes."""
