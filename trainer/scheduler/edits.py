"""Compare a checkpoint and a recipe field by field: what may change within a run, and what may not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from trainer.mixer.description import MixtureDescription
from trainer.recipe.numbers import at_most
from trainer.recipe.schema import Optimizer, Recipe
from trainer.scheduler.curves import Curve
from trainer.scheduler.decision import Difference, Refusal
from trainer.scheduler.guards import HORIZON, REWARM, SHIFT
from trainer.scheduler.state import PhaseRecord, RunState, optimizer_settings, settings_of

OTHER_RUN = "start another run: give it another run_dir, and this run's checkpoint as model.base"

UNDO = "undo the edit: the run then continues exactly from its checkpoint"

_FREE = frozenset({"global_batch_size"})
"""Settings that may change at any checkpoint: positions are counted in samples, LRs in tokens."""

_WEIGHTS = frozenset({"model.base", "model.init"})

_KEPT = _WEIGHTS | {"seq_len", "seed", "document_mask"}
"""Settings that never change within a run; a change of the others can be allowed."""


@dataclass(frozen=True)
class Edits:
    """What the recipe changed about the run, whether it may, and the run after the change."""

    diff: tuple[Difference, ...]
    refusals: tuple[Refusal, ...]
    state: RunState
    edited_lr: float | None
    """The next LR of the edited schedule; None if the schedule was not edited."""


def find_edits(recipe: Recipe, data: Sequence[MixtureDescription], state: RunState) -> Edits:
    """Compare the phases that have begun, and the settings; coming phases may be edited freely."""
    settings = settings_of(recipe)
    # A run of an earlier release has the defaults of the fields that its release did not know.
    saved = {**optimizer_settings(Optimizer()), **state.settings}
    diff = list(_differences(saved, settings))
    refusals = list(_refuse_settings(diff))
    known = min(len(state.phases), len(recipe.phases))
    for number in range(known - (known == len(state.phases))):
        here = list(_record_differences(recipe, data, state, number))
        if here:
            diff += here
            refusals.append(_past(state.phases[number].name, number))
    if known < len(state.phases):
        gone = [record.name for record in state.phases[known:]]
        diff += [Difference(f"phases.{known + at}", name, None) for at, name in enumerate(gone)]
        refusals.append(
            Refusal(
                f"the run has begun {len(state.phases)} phases and the recipe has {known}",
                (
                    f"restore {', '.join(map(repr, gone))} in the recipe; stop_after ends a run early",
                    OTHER_RUN,
                ),
            )
        )
        return Edits(tuple(diff), tuple(refusals), state, None)
    here = list(_record_differences(recipe, data, state, state.phase))
    diff += here
    refusals += _refuse_running(recipe, state, here)
    edited_schedule = any(d.part in ("schedule", "tokens") for d in here)
    edited = _as_written(recipe, state)(state.phase_trained_tokens) if edited_schedule else None
    if not any(refusal.name is None for refusal in refusals):
        state = _as_in_recipe(recipe, data, state, settings)
    return Edits(tuple(diff), tuple(refusals), state, edited)


def _as_in_recipe(
    recipe: Recipe, data: Sequence[MixtureDescription], state: RunState, settings: dict[str, Any]
) -> RunState:
    """Return the run with what the recipe changed: the same position, another future."""
    running = state.running
    edited = PhaseRecord.from_recipe(
        recipe, data, state.phase, running.incoming_lr, running.horizon, state.samples
    )
    return replace(state, settings=settings, phases=(*state.phases[:-1], edited))


def _as_written(recipe: Recipe, state: RunState) -> Curve:
    """Return the running phase's curve as the recipe has it."""
    phase = recipe.phases[state.phase]
    return Curve(phase.schedule, phase.tokens, state.running.incoming_lr)


def _refuse_settings(diff: Sequence[Difference]) -> Iterator[Refusal]:
    """Refuse changed settings outside the phases."""
    fields = [d.field for d in diff if d.field not in _FREE]
    numeric = [field for field in fields if field not in _KEPT]
    for field in (field for field in fields if field in _KEPT):
        if field == "seq_len":
            yield Refusal(
                "seq_len was changed, which would change all samples and the position in the data",
                (UNDO, OTHER_RUN),
            )
        elif field in _WEIGHTS:
            yield Refusal(
                f"{field} was changed, but the weights of this run come from its own checkpoint",
                (UNDO, "start another run: give it another run_dir"),
            )
        else:
            yield Refusal(f"{field} was changed within a run", (UNDO, OTHER_RUN))
    if numeric:
        yield Refusal(
            f"{', '.join(numeric)} changed within a run, which would no longer be one experiment",
            (UNDO, "keep the edit nevertheless: allow: [settings_edited]"),
            name="settings_edited",
        )


def _past(name: str, number: int) -> Refusal:
    return Refusal(
        f"phase {name!r} (phases.{number}) was edited, but it is over: the past cannot change",
        (UNDO, "add the change as a new phase after the last one that has begun"),
    )


def _whereabouts(state: RunState) -> str:
    return f"phase {state.phase_name!r} {'is done' if state.phase_done else 'is running'}"


def _refuse_running(recipe: Recipe, state: RunState, diff: Sequence[Difference]) -> Iterator[Refusal]:
    """Refuse edits of the running phase, by the part that they concern."""
    parts = {d.part for d in diff}
    where = _whereabouts(state)
    cut = f"end this phase now with phases.{state.phase}.schedule.anneal, and add the change as a new phase"
    if "data" in parts:
        yield Refusal(
            f"{where}, and its data was edited: some samples would be repeated and some never used",
            (UNDO, cut),
            SHIFT,
        )
    if parts & {"schedule", "tokens"}:
        yield from _refuse_curve(recipe, state, cut)
    for part in sorted(parts & {"name", "train", "keep_optimizer", "seq_len", "rope"}):
        yield Refusal(f"{where}, and its {part} was edited", (UNDO, cut))


def _refuse_curve(recipe: Recipe, state: RunState, cut: str) -> Iterator[Refusal]:
    """Refuse edits of the running phase's budget and schedule that would change the LR of past steps."""
    where, now = _whereabouts(state), state.phase_trained_tokens
    saved = state.running.curve
    phase = recipe.phases[state.phase]
    edited = replace(saved, schedule=phase.schedule, tokens=phase.tokens)
    if edited.pieces == saved.pieces and edited.schedule.lr_scale == saved.schedule.lr_scale:
        return  # the same curve, written differently
    old, new = saved.schedule, edited.schedule
    before, after = (
        {**tree, "anneal": None} for tree in (state.running.schedule, new.model_dump(mode="json"))
    )
    fields = [d.field for d in _differences(before, after, f"phases.{state.phase}.schedule.")]
    if fields and not _same_but_for_anneal(saved, edited):
        yield Refusal(
            f"{where}, and its schedule was edited ({', '.join(fields)}): the LR would leave its curve after "
            f"{now:,} tokens",
            (UNDO, cut),
            REWARM,
        )
        return
    if saved.tokens != edited.tokens:
        yield from _refuse_budget(saved, edited, now, state.phase)
    if old.anneal != new.anneal:
        for anneal in (old.anneal, new.anneal):
            if anneal is not None and anneal.from_tokens < now:
                yield Refusal(
                    f"{where}, and its anneal at {anneal.from_tokens:,} tokens was "
                    + ("edited after it had begun" if anneal is old.anneal else "added too late")
                    + f": {now:,} tokens of the phase are trained",
                    (UNDO, f"begin the anneal later: anneal.from_tokens of {now} or more"),
                    REWARM,
                )
                return


def _same_but_for_anneal(saved: Curve, edited: Curve) -> bool:
    """Return whether the schedules agree apart from `anneal`, with lengths compared in tokens."""
    then, now = _unannealed(saved), _unannealed(replace(edited, tokens=saved.tokens))
    return then.pieces == now.pieces and saved.schedule.lr_scale == edited.schedule.lr_scale


def _unannealed(curve: Curve) -> Curve:
    """Return the curve without its anneal."""
    return replace(curve, schedule=curve.schedule.model_copy(update={"anneal": None}))


def _refuse_budget(saved: Curve, edited: Curve, now: int, number: int) -> Iterator[Refusal]:
    """Refuse another budget if it changes the LR of past steps, or of a decay that has begun."""
    kind, field = saved.schedule.kind, f"phases.{number}.tokens"
    change = f"{field} was changed from {saved.tokens:,} to {edited.tokens:,}"
    start_over = (
        f"start another run with tokens: {edited.tokens} from its first token, or with a schedule without a "
        "horizon (wsd, infinite, constant)"
    )
    go_on = (
        f"keep {field}={saved.tokens}, let the phase finish, and add a phase after it: at the last LR "
        f"{at_most(saved.end)} without a re-warm, or with a re-warm on new data with replay"
    )
    falls = _decay_begins(saved), _decay_begins(edited)
    if falls[0] is None or falls[1] is None:
        yield Refusal(f"{change}, and every LR of {kind} depends on it", (go_on, start_over), HORIZON)
    elif now > falls[0]:
        yield Refusal(
            f"{change}, but the LR has decayed since {int(falls[0]):,} tokens, and {now:,} are trained",
            (
                go_on,
                "start another run, with a checkpoint from before the decay "
                f"({int(falls[0]):,} tokens of this phase) as model.base",
            ),
            REWARM,
        )
    elif any(one.stop != two.start for one, two in pairwise(_unannealed(edited).pieces)):
        yield Refusal(
            f"{change}, which is too short for the warm-up and the cooldown that have begun",
            (UNDO, f"end the phase earlier with an anneal: anneal.from_tokens of {now} or more"),
        )
    elif now > falls[1]:
        yield Refusal(
            f"{change}, but the decay would then have begun at {int(falls[1]):,} tokens, and {now:,} are "
            "trained: the LR would jump",
            (UNDO, f"end the phase earlier with an anneal: anneal.from_tokens of {now} or more"),
        )


def _decay_begins(curve: Curve) -> float | None:
    """Return the tokens up to which a schedule does not depend on its budget; None if it always does."""
    if curve.schedule.cycles > 1:
        return None
    if curve.schedule.kind == "constant":
        return math.inf
    if curve.schedule.kind not in ("wsd", "infinite"):
        return None
    last = _unannealed(curve).pieces[-1]
    return float(last.start if last.name in ("decay", "anneal") else last.stop)


def _record_differences(
    recipe: Recipe, data: Sequence[MixtureDescription], state: RunState, number: int
) -> Iterator[Difference]:
    """Compare a phase that has begun with the recipe's."""
    saved = state.phases[number]
    done = state.samples if number == state.phase else saved.samples
    edited = PhaseRecord.from_recipe(recipe, data, number, saved.incoming_lr, saved.horizon, done)
    for part in ("name", "tokens", "train", "keep_optimizer", "schedule", "rope"):
        old, new = {part: getattr(saved, part)}, {part: getattr(edited, part)}
        yield from _differences(old, new, f"phases.{number}.", part)
    lengths = saved.data.seq_len, edited.data.seq_len
    if lengths[0] != lengths[1]:  # every number of samples differs
        if recipe.seq_len == state.settings["seq_len"]:
            yield Difference(f"phases.{number}.seq_len", *lengths, "seq_len")
    else:
        shared = min(saved.samples, edited.samples)  # beyond it there is nothing to differ from
        old, new = (replace(one.data.truncated(shared), seed=0).to_json() for one in (saved, edited))
        yield from _differences(old, new, f"phases.{number}.data.", "data")


def _differences(
    saved: Mapping[str, Any], edited: Mapping[str, Any], prefix: str = "", part: str = ""
) -> Iterator[Difference]:
    """Compare field by field, into what is nested."""
    for key in [*saved, *(key for key in edited if key not in saved)]:
        old, new = saved.get(key), edited.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.", part)
        elif old != new:
            yield Difference(f"{prefix}{key}", old, new, part)
