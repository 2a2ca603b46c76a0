"""Decide what starting a recipe in a run directory means: start, restore, new phase, finished, or refuse.

The decision is a pure function of the recipe, the data, and the state in the newest good checkpoint. It is
made when a run starts, when a crash or a requeue restarts it, and at the end of every phase, by one rule and
without a flag. The LR after a resume follows from it, so no scheduler state is ever saved or fast-forwarded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trainer.mixer.description import MixtureDescription
from trainer.recipe.numbers import at_most
from trainer.recipe.schema import Recipe
from trainer.scheduler import guards
from trainer.scheduler.decision import Decision, PhaseSpan, Refusal
from trainer.scheduler.edits import find_edits
from trainer.scheduler.guards import Advice
from trainer.scheduler.state import BaseLineage, PhaseRecord, RunState, settings_of


def decide(
    recipe: Recipe,
    data: Sequence[MixtureDescription],
    state: RunState | None,
    base: BaseLineage | None = None,
) -> Decision:
    """Decide what starting means.

    Args:
        recipe: the whole run.
        data: the mixture's description of each phase, `[mixture.describe(p) for p in …]`.
        state: from the newest good checkpoint in the run directory; None if there is none.
        base: what is known about `model.base`, if the recipe has one.

    Returns:
        The decision; training goes on from its `state`. A refusal is a decision too, not an error.

    Raises:
        UserErrors: `allow` holds names that do not exist.
    """
    guards.check_allow(recipe)
    if state is None:
        return _start(recipe, data, base or BaseLineage(recipe.model.base or "random weights"))
    edits = find_edits(recipe, data, state)
    found = _describe_state(state)
    ahead = _review_coming_phases(recipe, data, edits.state, base)
    refusals, lifted = _lift((*edits.refusals, *ahead.refusals, *_over_budget(recipe, state)), recipe)
    decision = Decision(
        "refuse",
        found,
        "; ".join(refusal.what for refusal in refusals),
        state,
        _spans(edits.state, ahead),
        diff=edits.diff,
        refusals=refusals,
        lifted=lifted,
        edited_lr=edits.edited_lr,
    )
    if refusals:
        return decision
    state = edits.state
    going = replace(decision, state=state, warnings=ahead.warnings, edited_lr=None)
    return _go_on(recipe, going, ahead)


def _go_on(recipe: Recipe, going: Decision, ahead: _Ahead) -> Decision:
    """Decide between finished, restore and new phase, for a recipe that agrees with the past."""
    state = going.state
    count = len(recipe.phases)
    if recipe.stop_after is not None and state.tokens >= recipe.stop_after:
        reason = f"the run has reached stop_after, {recipe.stop_after:,} tokens; raise it to train on"
        return replace(going, kind="finished", reason=reason, warnings=())
    if not state.phase_done:
        return replace(going, kind="restore", reason=_restore_reason(going), keep_optimizer=True)
    if state.phase + 1 == count:
        reason = f"all {count} phases are done" if count > 1 else "its one phase is done"
        return replace(going, kind="finished", reason=f"{reason}; add a phase to train on", warnings=())
    phase = recipe.phases[state.phase + 1]
    kept = "kept" if phase.keep_optimizer else "reset"
    reason = (
        f"phase {state.phase_name!r} ended at LR {state.next_lr:.6g}; phase {phase.name!r} begins with "
        f"its own schedule at LR {ahead.records[0].curve(0):.6g}, and the optimizer state is {kept}"
    )
    entered = replace(
        state,
        phases=(*state.phases, ahead.records[0]),
        settings=settings_of(recipe),
        samples=0,
        phase_trained_tokens=0,
        vitals={},
    )
    return replace(going, kind="new_phase", reason=reason, state=entered, keep_optimizer=phase.keep_optimizer)


def _restore_reason(going: Decision) -> str:
    """Say why the run is restored."""
    reason = "the recipe has the same phase, data and schedule as the checkpoint"
    if going.diff:
        reason += ", with the changes below, which affect neither the LR nor the data already trained"
    running = going.state.running
    if running.horizon != running.tokens:
        reason += f"; warm-up and cooldown stay shares of the first budget, {running.horizon:,} tokens"
    return reason


def _start(recipe: Recipe, data: Sequence[MixtureDescription], base: BaseLineage) -> Decision:
    """Decide for an empty run directory: phase 0, step 0."""
    known = base.peak if base.peak is not None else guards.published_peak(recipe.model.base)
    first = PhaseRecord.from_recipe(recipe, data, 0, base.lr or 0.0)
    state = RunState((first,), settings_of(recipe), seen_before=base.seen, peak_before=known)
    ahead = _review_coming_phases(recipe, data, None, replace(base, peak=known))
    again = guards.samples_again(recipe, ahead.records, base.seen)
    refusals, lifted = _lift(ahead.refusals, recipe)
    decision = Decision(
        "start",
        f"no checkpoint in {recipe.directory}; weights from {base.name}",
        f"the run begins: phase {first.name!r}, step 0, LR {first.curve(0):.6g}",
        state,
        _spans(state, replace(ahead, records=ahead.records[1:])),
        lifted=lifted,
        warnings=(*(one for one in again if one.name not in recipe.allow), *ahead.warnings),
        keep_optimizer=recipe.phases[0].keep_optimizer,
    )
    if refusals:
        reason = "; ".join(refusal.what for refusal in refusals)
        return replace(decision, kind="refuse", reason=reason, refusals=refusals, warnings=())
    return decision


@dataclass(frozen=True)
class _Ahead:
    """The phases that have not begun, as they will be recorded, with their refusals and warnings."""

    records: tuple[PhaseRecord, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[Advice, ...] = ()


def _review_coming_phases(
    recipe: Recipe, data: Sequence[MixtureDescription], state: RunState | None, base: BaseLineage | None
) -> _Ahead:
    """Check every phase that has not begun at the first start, not when the run gets there in a week."""
    begun = 0 if state is None else len(state.phases)
    incoming_lr = base.lr if base is not None else None
    peak = base.peak if base is not None else None
    if state is not None:
        incoming_lr = state.next_lr if state.phase_done else state.running.curve.end
        peak = state.peak_before
    records: list[PhaseRecord] = []
    refusals: list[Refusal] = []
    warnings: list[Advice] = []
    for number in range(begun, len(recipe.phases)):
        phase = recipe.phases[number]
        record = PhaseRecord.from_recipe(recipe, data, number, incoming_lr or 0.0)
        seen = _seen(record.train, state, base, records)
        refusal = _same_data(number, record, incoming_lr, seen)
        if phase.schedule.start_lr == "reached" and incoming_lr is None:
            refusals.append(_unknown_reached(number))
        if number == 0 and phase.keep_optimizer and not (base is not None and base.optimizer):
            refusals.append(_no_optimizer())
        if refusal is not None:
            refusals.append(refusal)
        warnings += [
            warning
            for warning in guards.advice(
                recipe,
                number,
                record,
                incoming_lr=incoming_lr,
                base_peak=peak,
                seen=seen,
                new_rows=base.new_rows if base is not None else 0,
            )
            if warning.name not in recipe.allow
        ]
        records.append(record)
        incoming_lr = record.curve.end
    return _Ahead(tuple(records), tuple(refusals), tuple(warnings))


def _seen(
    train: str | list[str],
    state: RunState | None,
    base: BaseLineage | None,
    planned: Sequence[PhaseRecord],
) -> set[str]:
    """Find the data, by fingerprint, on which the weights that a phase trains were trained before it."""
    if train == "new_rows":
        return set()  # these rows are new
    before = state.seen_before if state is not None else base.seen if base is not None else {}
    found = guards.substantial(before)
    for record in (*(state.phases if state is not None else ()), *planned):
        if record.train in (
            "all",
            train,
        ):  # a phase of embeddings alone leaves the rest of the model as it was
            found |= guards.substantial(record.tokens_seen(record.samples))
    return found


def _same_data(number: int, record: PhaseRecord, incoming_lr: float | None, seen: set[str]) -> Refusal | None:
    """Refuse a re-warm on data that the weights have already been trained on."""
    same = guards.overlap(record, seen)
    if incoming_lr is None or record.curve.peak <= incoming_lr or same <= guards.LARGEST_REPLAY:
        return None
    go_on = f"train without a re-warm: phases.{number}.schedule.max_lr={at_most(incoming_lr)}, the last LR"
    whose = "the base's data" if number == 0 else "the data of the base or of earlier phases"
    return Refusal(
        f"phase {record.name!r} re-warms the LR from {incoming_lr:.3g} to {record.curve.peak:.3g} on data "
        f"that the weights have seen: {same:.0%} of its mixture is {whose}",
        (
            *([go_on] if incoming_lr > 0 else []),
            "train on new data, with the old data as replay (at most half of the mixture)",
            "re-warm nevertheless: allow: [rewarm_on_same_data]",
        ),
        guards.REWARM,
        "rewarm_on_same_data",
    )


def _unknown_reached(number: int) -> Refusal:
    return Refusal(
        f"phases.{number}.schedule.start_lr is 'reached', but the base is not one of our checkpoints, so its "
        "last LR is not known",
        (f"give a number, for example phases.{number}.schedule.start_lr=3e-5",),
    )


def _no_optimizer() -> Refusal:
    return Refusal(
        "phases.0.keep_optimizer is true, but the optimizer state to keep is missing: the base has none, or "
        "has another vocabulary",
        ("remove it, or start from one of our own checkpoints with the same vocabulary",),
    )


def _over_budget(recipe: Recipe, state: RunState) -> Iterator[Refusal]:
    """Refuse to go on with a forgetting budget that the run has found that it cannot hold."""
    last, running = state.over_budget, recipe.phases[state.phase : state.phase + 1]
    budget = running[0].steered if running else None
    if last is None or budget is None or budget.forgetting_budget is None:
        return
    if budget.on_failure == "stop" and budget.forgetting_budget <= last["budget"]:
        field = f"phases.{state.phase}.mixture"
        yield Refusal(
            f"the forgetting budget of phase {state.phase_name!r}, {last['budget']:g} bits per byte, cannot "
            f"be held: forgetting is {last['state']['forgetting']:.4g} at the highest replay ratio, "
            f"{last['bounds'][1] / last['of']:.1%}",
            (
                f"allow more forgetting: {field}.forgetting_budget={2 * last['budget']:g}",
                f"let the run do something about it: {field}.on_failure=lower_lr, or pull_to_base",
                "start another run with a lower schedule.max_lr, or with more of the old text",
            ),
        )


def _lift(refusals: Sequence[Refusal], recipe: Recipe) -> tuple[tuple[Refusal, ...], tuple[str, ...]]:
    """Separate the refusals that `allow` leaves from the names that lifted the others."""
    left = tuple(refusal for refusal in refusals if refusal.name not in recipe.allow)
    lifted = {refusal.name for refusal in refusals if refusal.name in recipe.allow}
    return left, tuple(sorted(name for name in lifted if name is not None))


def _spans(state: RunState, ahead: _Ahead) -> tuple[PhaseSpan, ...]:
    """Place every phase in the run, each counted in samples of its own seq_len."""
    spans: list[PhaseSpan] = []
    start = 0
    for record in (*state.phases, *ahead.records):
        stop = start + record.samples * record.data.seq_len
        spans.append(PhaseSpan(record.name, start, stop, record.curve))
        start = stop
    return tuple(spans)


def _describe_state(state: RunState) -> str:
    """Describe the checkpoint's position in one line."""
    lr = "" if state.lr is None else f", last LR {state.lr:.6g}"
    samples = f"{state.samples:,} of {state.running.samples:,} samples"
    return (
        f"a checkpoint at step {state.step:,}, {state.tokens:,} tokens of the run: "
        f"phase {state.phase_name!r} (number {state.phase}), {samples}{lr}"
    )
