"""Studies that leave a run in its middle: wrong resumes, and anneals that branch off a trunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tokenization.errors import UserError
from trainer.recipe.schema import Recipe
from trainer.scheduler.curves import Curve
from trainer.study.spec import ArmSpec, Change, Options, combinations, phase_fields

STRAIGHT_PIECES = 32
"""Straight pieces that half of a curve is drawn with: within 0.1 % of its highest value."""

LENGTHS = (5, 10, 20)
"""Of `branch` without `--vary`: the anneals' lengths, in per cent of the trunk."""


def restore_arms(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    """Yield the last phase interrupted half-way and gone on with in four manners.

    All arms share the first half. `exact` goes on as if nothing had happened; `optimizer-reset` loses AdamW's
    moments; `schedule-restarted` counts the schedule's tokens from 0 again, and so warms up again;
    `constant` stays at the learning rate that it had.

    Raises:
        UserError: the phase has an anneal, cycles or segments, or fewer than four steps.
    """
    number, phase, step = len(recipe.phases) - 1, recipe.phases[-1], recipe.tokens_per_step
    field = f"phases.{number}"
    if phase.schedule.anneal is not None or phase.schedule.cycles > 1:
        raise UserError("has an anneal or cycles", field=f"{field}.schedule", fix="give it a plain curve")
    if len(phase.mixture) > 1:
        raise UserError("changes within the phase", field=f"{field}.mixture", fix="give it one mixture")
    half = phase.tokens // (2 * step) * step
    if half < 2 * step:
        what = f"has fewer than four steps of {step:,} tokens"
        raise UserError(what, field=f"{field}.tokens", value=phase.tokens, fix="give it more")
    curve = Curve(phase.schedule, phase.tokens)
    rest, reached = phase.tokens - half, float(curve(half))
    if not reached > 0:
        raise UserError("is 0 half-way", field=f"{field}.schedule", fix="give it a min_lr above 0")
    first, again = _part(curve, 0, half, step), _part(curve, 0, rest, step)
    going_on = _part(curve, half, phase.tokens, step)
    constant = {"kind": "constant", "max_lr": reached, "warmup": 0, "lr_scale": phase.schedule.lr_scale}
    ends: dict[str, tuple[Change, bool]] = {
        "exact": (going_on, True),
        "optimizer-reset": (going_on, False),
        "schedule-restarted": (again, True),
        "constant": (constant, True),
    }
    shown = [phase_fields(one) for one in recipe.phases]
    for name, (schedule, keep) in ends.items():
        begun = {**shown[-1], "tokens": half, "schedule": first}
        resumed = {**shown[-1], "name": f"{phase.name}-resumed", "tokens": rest, "schedule": schedule}
        resumed["keep_optimizer"] = keep
        yield ArmSpec(name, {"phases": [*shown[:-1], begun, resumed]}, number + 1)


def _part(curve: Curve, start: int, stop: int, step: int) -> Change:
    """Return the schedule of a phase that follows a curve from `start` to `stop` in straight pieces.

    A warm-up that lies within the part stays one. The joints lie on steps, whose learning rates are the
    curve's own.
    """
    first = curve.pieces[0]
    warm = math.ceil(first.stop) if first.name == "warmup" and start == 0 else 0
    schedule: dict[str, Any] = {"kind": "stages", "warmup": 0, "lr_scale": curve.schedule.lr_scale}
    if warm:
        schedule |= {"warmup": warm, "start_lr": first.lr_from}
    width = max(step, -(-(stop - start) // STRAIGHT_PIECES) // step * step)
    joints = [start + warm, *(at for at in range(start, stop, width) if at > start + warm), stop]
    schedule["stages"] = [
        {"shape": "linear", "length": after - before, "end_lr": float(curve(after))}
        for before, after in pairwise(joints)
    ]
    return {**schedule, "max_lr": first.lr_to if warm else float(curve(start))}


def branch_arms(recipe: Recipe, options: Options) -> Iterator[ArmSpec]:
    """Yield anneals that leave the recipe's run, the trunk, after so many tokens of a phase.

    The phase ends there, and a phase of its own follows: a linear fall to 0, with the optimizer's moments,
    that goes on with the data. `--vary` sets fields of that phase; without it the lengths are 5, 10 and 20 %
    of the trunk.

    Raises:
        UserError: `--from` is missing.
    """
    if options.branched is None:
        raise UserError("is missing: a branch leaves a run", field="--from", fix="give --from RUN@TOKENS")
    number, tokens = options.branched
    shown = [phase_fields(one) for one in recipe.phases[: number + 1]]
    cut = {**shown[-1], "tokens": tokens}
    reached = float(Curve(recipe.phases[number].schedule, recipe.phases[number].tokens)(tokens))
    fall = {"kind": "linear", "max_lr": reached, "min_lr": 0, "warmup": 0}
    end = {**shown[-1], "name": "branch", "schedule": fall, "keep_optimizer": True}
    step = recipe.tokens_per_step
    lengths = {f"{share}%": -(-tokens * share // 100 // step) * step for share in LENGTHS}
    varied = list(combinations(options.vary)) or [
        (f"anneal-{share}", {"tokens": length}) for share, length in lengths.items()
    ]
    for name, fields in varied:
        phase = {**end, "tokens": lengths["10%"]}
        changed = {f"phases.{number + 1}.{field}": value for field, value in fields.items()}
        yield ArmSpec(name.replace("%", ""), {"phases": [*shown[:-1], cut, phase], **changed}, number + 1)
