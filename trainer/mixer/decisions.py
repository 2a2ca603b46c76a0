"""Decisions about the replay: each is made from a reading, bounded by what the sources hold, and recorded.

A record holds all that the decision depended on, the controller's state after it, and the checksum of the
record before, so that a log that was edited or lost a line is refused. With the recipe, the records say which
sample is number i.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import xxhash

from tokenization.errors import UserError
from trainer.mixer.mixture import Mixture
from trainer.mixer.replay_control import (
    PARTS,
    Bounds,
    ControlSettings,
    ControlState,
    Reading,
    decide_replay,
)
from trainer.mixer.segments import RatioChange, allowed_ratios, start_parts
from trainer.recipe.schema import Segment

MOST_HALVINGS = 3
"""How often a phase may halve its learning rate: with hardly any, what was forgotten is not learnt again."""

DecisionRecord = Mapping[str, Any]
"""A line of `decisions.jsonl`."""


def make_record(
    segment: Segment,
    before: Sequence[DecisionRecord],
    documents: str,
    *,
    phase: int,
    sample: int,
    every: int,
    reading: Reading,
    bounds: Bounds,
) -> dict[str, Any]:
    """Decide, and return the record of it.

    Args:
        segment: the phase's mixture, with its forgetting budget.
        before: all records of the run so far.
        documents: checksum of the documents that are measured, with which the chain begins.
        phase: its number.
        sample: samples of the phase that are behind.
        every: samples between decisions; this one applies from the next multiple after `sample` on.
        reading: what was measured.
        bounds: the ratios that may be decided.
    """
    assert segment.forgetting_budget is not None
    own = [record for record in before if record["phase"] == phase]
    start = Fraction(start_parts(segment, segment.replay_ratio), PARTS)
    state = ControlState.starting_at(start, segment.forgetting_budget, at_base=phase == 0)
    if own:
        state = ControlState.from_json(own[-1]["state"])
    settings = ControlSettings(segment.forgetting_budget, segment.replay_gain)
    state, decided = decide_replay(settings, state, reading, bounds)
    return {
        "phase": phase,
        "decision": sample // every,
        "sample": sample,
        "applies_from": (sample // every + 1) * every,
        "replay": decided.parts,
        "of": PARTS,
        "reading": vars(reading),
        "budget": settings.budget,
        "gain": settings.gain,
        "bounds": [bounds.lowest, bounds.highest],
        "ahead": decided.ahead,
        "target": decided.target,
        "deviation": decided.deviation,
        "held": decided.held,
        "action": None if decided.held else _action(segment, own),
        "state": state.to_json(),
        "previous": checksum_of(before[-1]) if before else documents,
    }


def _action(segment: Segment, own: Sequence[DecisionRecord]) -> str | None:
    """Return what is done about a budget that cannot be held; None once the LR is as low as it may get."""
    lowered = sum(record["action"] == "lower_lr" for record in own)
    return None if segment.on_failure == "lower_lr" and lowered >= MOST_HALVINGS else segment.on_failure


def checksum_of(record: DecisionRecord) -> str:
    """Return the checksum of a record, by which the next one refers to it."""
    return xxhash.xxh3_128_hexdigest(line_of_record(record).encode())


def line_of_record(record: DecisionRecord) -> str:
    """Write a record as it stands in the log; a float is written so that it is read back exactly."""
    return json.dumps(record, sort_keys=True)


def changes_of(records: Sequence[DecisionRecord]) -> list[RatioChange]:
    """Return what the decisions change, for the mixture."""
    return [RatioChange(one["phase"], one["applies_from"], one["replay"]) for one in records]


def read_decisions(file: Path) -> list[dict[str, Any]]:
    """Read a decision log.

    Raises:
        UserError: it is missing or damaged, or a line does not belong to the line before it.
    """
    try:
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        changes_of(records)
    except OSError as error:
        fix = "give the decisions.jsonl of a run with a forgetting budget"
        raise UserError(f"cannot be read ({error.strerror})", file=file, fix=fix) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"is damaged ({error})", file=file, fix="take the copy in a checkpoint") from error
    for number, (before, record) in enumerate(pairwise(records), start=2):
        if record.get("previous") != checksum_of(before):
            what = "does not belong to the line before it: a line was changed or is missing"
            raise UserError(what, file=file, field=f"line {number}", fix="take the copy in a checkpoint")
    return records


def bounds_now(mixture: Mixture, segment: Segment, phase: int, from_sample: int) -> Bounds:
    """Return the ratios from a sample on for which no source outruns its `max_epochs` by the phase's end.

    What later phases take is left for them. Where the sources do not allow any ratio but the one in force,
    that one is returned: the run was planned with it.
    """
    allowed = allowed_ratios(segment)
    left = mixture.phase_samples[phase] - from_sample
    if left <= 0:
        return allowed
    shares = {role: _largest_share(mixture, phase, role, from_sample, left) for role in ("new", "replay")}
    lowest = max(allowed.lowest, ceil((1 - shares["new"]) * PARTS))
    highest = min(allowed.highest, floor(shares["replay"] * PARTS))
    if lowest > highest:
        lowest = highest = round(_ratio_at_end(mixture, phase) * PARTS)
    return Bounds(lowest, highest)


def _largest_share(mixture: Mixture, phase: int, role: str, from_sample: int, left: int) -> Fraction:
    """Return the largest share of the `left` samples that the sources of a role can give."""
    order, last = mixture.orders[phase], len(mixture.phase_samples) - 1
    weights = mixture.spans[phase][-1].weights
    total = sum(
        weight for weight, source in zip(weights, mixture.sources, strict=True) if source.role == role
    )
    used = mixture.consumed(phase, from_sample)
    ends = (phase, mixture.phase_samples[phase]), (last, mixture.phase_samples[last])
    epochs = [mixture.epochs(*end) for end in ends]
    largest = Fraction(1)
    for number, (name, weight) in enumerate(zip(mixture.names, weights, strict=True)):
        if mixture.sources[number].role != role or not weight or mixture.limit(name) is None:
            continue
        later = ceil((epochs[1][name] - epochs[0][name]) * int(order.samples[number]) - 1e-6)
        # A count is within one sample of its share, and a split by size within one step of its total.
        spare = 2 + left // 2**14
        free = int(order.limits[number]) - used[name] - later - spare
        largest = min(largest, Fraction(max(free, 0), left) / (weight / total))
    return largest


def _ratio_at_end(mixture: Mixture, phase: int) -> Fraction:
    """Return the replay ratio that is in force at the end of a phase, as it is planned."""
    pairs = zip(mixture.spans[phase][-1].weights, mixture.sources, strict=True)
    return sum((weight for weight, source in pairs if source.role == "replay"), Fraction(0))
