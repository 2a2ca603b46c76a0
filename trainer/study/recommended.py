"""A recommendation written as a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tokenization import disk
from tokenization.errors import UserError
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.schema import Recipe
from trainer.storage.run_directory import RunDirectory
from trainer.study.grids import mixture_of_replay
from trainer.study.observed import StudiedArm, of_one_schedule
from trainer.study.recommend import Recommendation
from trainer.study.spec import flow

STEP = Fraction(1, 1000)
"""A recommended share of replay is rounded up to a multiple of this."""

LEAST_STEERED, MOST_STEERED = Fraction(2, 1024), Fraction(60, 100)
"""Shares that a forgetting budget may start from, unless the recipe says otherwise."""


def write_recipe(
    found: Recommendation, arms: Sequence[StudiedArm], out: Path, tokens: int | None, *, for_budget: bool
) -> str:
    """Write the recipe of an arm with what is recommended to the new file `out`, and return what it says.

    The replay is the upper end of its interval, so that forgetting is kept in nearly all fits. `for_budget`
    writes a forgetting budget instead, which steers the replay from there on, with the measured gain.

    Raises:
        UserError: the file exists, no replay is named, the arms show no gain for a budget, or a value does
            not fit the recipe.
    """
    if out.exists() or out.is_symlink():
        raise UserError("exists", field="--write", value=str(out), fix="give a new file")
    replay = found.of("replay")
    if replay.value is None:
        raise UserError(f"is not written: {replay.lines[0]}", field="--write", value=str(out))
    share = _rounded_up(replay.interval[1] if replay.interval else replay.value)
    one = of_one_schedule(arms)[0]
    file = RunDirectory(one.arm.directory).recipe
    base = load_recipe(file)
    fields = _fields(base, found, share, tokens)
    if for_budget:
        fields["mixture"] = _budget(found, share)
    last = len(base.phases) - 1
    words = [f"phases.{last}.{field}={flow(value)}" for field, value in fields.items()]
    recipe = load_recipe(file, [f"name={_name(base, one)}", "run_dir=null", *words])
    head = [f"Written by `rewarm study recommend --forgetting {found.target.forgetting:g}`:"]
    told = "".join(f"# {line}\n" for line in [*head, *found.to_text().splitlines()])
    with disk.disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(out, told + dump_recipe(recipe))
    model = f"model.base {recipe.model.base}" if recipe.model.base else "random weights"
    return f"{out}: {', '.join(words)}; it starts from {model}, as the arms do"


def _rounded_up(share: float) -> Fraction:
    return min(Fraction(1), math.ceil(Fraction(share).limit_denominator(10**6) / STEP) * STEP)


def _budget(found: Recommendation, share: Fraction) -> dict[str, Any]:
    """Return the mixture that is steered by a forgetting budget, and where it starts.

    Raises:
        UserError: the arms show no gain.
    """
    if found.gain is None:
        what = "needs arms of two shares of replay that forgot something, the larger share less"
        raise UserError(what, field="--for-budget", fix="run `rewarm study replay`")
    start = min(max(share, LEAST_STEERED), MOST_STEERED)
    steered = {"forgetting_budget": found.target.forgetting, "replay_gain": round(found.gain, 3)}
    return {"replay_ratio": str(start), **steered}


def _fields(base: Recipe, found: Recommendation, share: Fraction, tokens: int | None) -> dict[str, Any]:
    """Return the fields of the last phase."""
    schedule = base.phases[-1].schedule
    fields: dict[str, Any] = {"mixture": mixture_of_replay(base, share)}
    if tokens is not None:
        fields["tokens"] = tokens
    max_lr, warmup = found.of("max_lr").value, found.of("warmup").value
    if max_lr is not None and max_lr != schedule.max_lr:
        fields["schedule.max_lr"] = max_lr
        if schedule.min_lr is not None:
            fields["schedule.min_lr"] = float(f"{schedule.min_lr * max_lr / schedule.max_lr:.6g}")
    if warmup is not None:
        fields["schedule.warmup"] = f"{warmup * 100:.6g}%"
    return fields


def _name(base: Recipe, one: StudiedArm) -> str:
    """Return a name that is not the arm's: that run is finished."""
    return f"{base.name.removesuffix(f'-{one.arm.directory.name}')}-recommended"
