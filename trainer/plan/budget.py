"""What a forgetting budget may do, before the run: bounds, decisions, the supply of replay, the cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from trainer.evaluation.paired import Documents
from trainer.mixer.decisions import bounds_now
from trainer.mixer.replay_control import FALL, PARTS, RISE, logit_of
from trainer.mixer.segments import decision_samples, start_parts
from trainer.plan.data import share_tokens
from trainer.plan.make import Plan

MOST_COST = 0.02
"""Share of a run's computing that measuring should take at most."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS = 48


def budget_plans(plan: Plan) -> list[dict[str, Any]]:
    """Return what each phase with a forgetting budget may do."""
    return [
        _plan_of(plan, number) for number, phase in enumerate(plan.recipe.phases) if phase.steered is not None
    ]


def _plan_of(plan: Plan, number: int) -> dict[str, Any]:
    recipe, mixture = plan.recipe, plan.mixture
    segment, samples = recipe.phases[number].mixture[0], mixture.phase_samples[number]
    every = decision_samples(recipe, number) or 1
    running = number == plan.decision.state.phase
    done = plan.decision.state.samples if running else 0
    bounds = bounds_now(mixture, segment, number, min((done // every + 2) * every, samples))
    store = plan.validation.get("upstream")
    pieces = segment.measured_samples
    if store is not None:
        pieces = len(Documents.choose(store, pieces, recipe.seq_len).starts)
    # A forward pass is a third of a step's computing; padded rows cost as much as full ones.
    cost = pieces * recipe.seq_len / 3 / (every * recipe.seq_len_of(number))
    return {
        "phase": recipe.phases[number].name,
        "budget": segment.forgetting_budget,
        "start": start_parts(segment, segment.replay_ratio) / PARTS,
        "lowest": bounds.lowest / PARTS,
        "highest": bounds.highest / PARTS,
        "replay_min": float(segment.replay_min),
        "replay_max": float(segment.replay_max),
        "decide_every_tokens": every * recipe.seq_len_of(number),
        "decisions": samples // every,
        "measured_samples": pieces,
        "cost": cost,
        "gain": segment.replay_gain,
        "on_failure": segment.on_failure,
        "averaged": recipe.model.average is not None,
        "replay_supply": _supply(plan, number),
    }


def _supply(plan: Plan, number: int) -> float | None:
    """Return the share of the phase that the replay sources could fill; None without a limit."""
    mixture, samples = plan.mixture, plan.mixture.phase_samples[number]
    used, left = mixture.consumed(number, 0), Fraction(0)
    for place, name in enumerate(mixture.names):
        if mixture.sources[place].role == "replay":
            if mixture.limit(name) is None:
                return None
            left += max(0, int(mixture.orders[number].limits[place]) - used[name])
    return float(left / max(samples, 1))


def budget_lines(plan: Plan) -> Iterator[str]:
    """Write it for people; nothing without a forgetting budget."""
    for one in budget_plans(plan):
        yield (
            f"budget   phase {one['phase']}: forgetting at most {one['budget']:g} bits per byte; "
            f"replay starts at {one['start']:.1%}, and goes from {one['lowest']:.1%} to {one['highest']:.1%}"
        )
        supply = one["replay_supply"]
        told = "without a limit of epochs" if supply is None else f"at most {supply:.1%} of the phase"
        yield f"         supply: the replay sources hold {told}"
        yield (
            f"         {one['decisions']:,} decisions, one every {one['decide_every_tokens']:,} tokens, each "
            f"applied one later; {one['measured_samples']:,} samples are measured, "
            f"{one['cost']:.2%} of the run's computing"
            + (f", above {MOST_COST:.0%}: raise decide_every" if one["cost"] > MOST_COST else "")
        )
        yield f"         most     {_reach(one, +1)}  the fastest that replay may rise"
        yield f"         least    {_reach(one, -1)}  and fall"
        if (line := _audit_line(plan)) is not None:
            yield f"         {line}"
        if not one["averaged"]:
            yield (
                "         it is measured on the weights of the step, which read too high at a high LR: "
                "model.average measures averaged ones"
            )


def _audit_line(plan: Plan) -> str | None:
    """Say what the audit set lacks to be one, if anything."""
    audit, upstream = plan.validation.get("audit"), plan.validation.get("upstream")
    if plan.recipe.validation.audit is None:
        return "validation.audit is not given: the forgetting that is reported is the one that was steered by"
    if audit is not None and upstream is not None and share_tokens(audit, upstream):
        return (
            "validation.audit holds tokens of validation.upstream, so it does not audit: hold out other text"
        )
    return None


def _reach(one: dict[str, Any], sign: int) -> str:
    """Draw the ratio under the fastest rise or fall, over the phase."""
    drawn = []
    for column in range(_COLUMNS):
        decision = column * max(one["decisions"], 1) // _COLUMNS - 1
        logit = logit_of(one["start"]) + sign * (RISE if sign > 0 else FALL) * max(0, decision)
        ratio = min(max(1 / (1 + math.exp(-logit)), one["lowest"]), one["highest"])
        drawn.append(_BLOCKS[min(int(ratio * len(_BLOCKS)), len(_BLOCKS) - 1)])
    return "".join(drawn)
