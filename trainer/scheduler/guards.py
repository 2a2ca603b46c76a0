"""Warnings from the papers on continued pretraining, each with its number and a name to silence it.

A guard looks at a coming phase and says what its choice cost in a paper. One of them, a re-warm on data that
the weights have already seen, is a refusal; `allow` lifts it by its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tokenization.errors import UserError, UserErrors, did_you_mean
from trainer.recipe.schema import Recipe
from trainer.scheduler.state import PhaseRecord

REWARM = (
    "Gupta et al. 2023 (arXiv 2308.04014): re-warming on the same data raised the loss, more with a larger "
    "max_lr, and 50B further tokens did not recover it"
)

SHIFT = (
    "Ibrahim et al. 2024 (arXiv 2403.08763): after a shift of data at 405M (Pile to German) the old "
    "data's loss ended at 3.56 with 0 % replay, 2.83 with 1 %, 2.57 with 5 %, 2.33 with 25 %; "
    "the base had 2.17"
)

HORIZON = (
    "Ibrahim et al. 2024 (arXiv 2403.08763), eq. 2: a cosine is fixed by its horizon, so another budget "
    "is another curve from the first token on, and stretching it raises an LR that has decayed; " + REWARM
)

LARGE = (
    "Ibrahim et al. 2024 (arXiv 2403.08763): at 405M without replay the old data's loss ended at 2.42, 2.43, "
    "2.44, 2.48 with max_lr 3e-5 (constant), 1.5e-4, 3e-4, 6e-4"
)

SHORT = (
    "Gupta et al. 2023 (arXiv 2308.04014): constant 3e-5 led for the first 100B tokens, and 0 % warm-up made "
    "the loss spike; with a short budget a small max_lr and a long warm-up are the safe choice"
)

VOCABULARY = (
    "2401.01055: LLaMA's own vocabulary after 0.5B Chinese tokens beat an extended one after 30B; "
    "2402.14714: a staged training of the new rows needed 2B"
)

GUARDS = (
    "rewarm_on_same_data",
    "settings_edited",
    "rewarm_within_phase",
    "base_samples_again",
    "max_lr_above_base_peak",
    "no_replay",
    "short_budget_without_warmup",
    "small_budget_for_vocabulary",
    "phase_of_one_step",
    "decay_of_one_step",
)
"""Names that `allow` may hold."""

LARGEST_REPLAY = 0.5
"""The largest share of old data that Ibrahim et al. 2024 call replay; above it, it is the same data again."""

TRACE = 0.1
"""A source with less than this share of the tokens so far does not count as data of the base."""

SHORT_BUDGET = 100_000_000_000

SAFE_LR = 3e-5

VOCABULARY_BUDGET = 2_000_000_000

_PUBLISHED_PEAKS = {"llama27b": 3e-4, "llama213b": 3e-4, "llama270b": 1.5e-4, "pythia410m": 3e-4}
"""Published peak LRs of well-known bases, by name without `-` and `_`."""


@dataclass(frozen=True)
class Advice:
    """A warning from a paper."""

    name: str
    text: str


def check_allow(recipe: Recipe) -> None:
    """Refuse names in `allow` that are not the name of a warning or refusal.

    Raises:
        UserErrors: one for each, with the nearest known name.
    """
    unknown = [name for name in recipe.allow if name not in GUARDS]
    if unknown:
        raise UserErrors(
            UserError(
                "is not the name of a warning or refusal",
                field="allow",
                value=name,
                fix=did_you_mean(name, GUARDS) or f"known are {', '.join(GUARDS)}",
            )
            for name in unknown
        )


def published_peak(base: str | None) -> float | None:
    """Look up the peak LR of a well-known base by its name, written with or without `-` and `_`."""
    joined = (base or "").lower().replace("-", "").replace("_", "")
    return next((peak for name, peak in _PUBLISHED_PEAKS.items() if name in joined), None)


def substantial(seen: Mapping[str, int]) -> set[str]:
    """Return the fingerprints that are more than a trace of the tokens."""
    return {fingerprint for fingerprint, tokens in seen.items() if tokens >= TRACE * sum(seen.values())}


def overlap(record: PhaseRecord, seen: Collection[str], among: Collection[str] | None = None) -> float:
    """Return the share of the phase's mixture that the weights have seen, counting only sources `among`."""
    return sum(
        share
        for source, share in record.data.shares(record.samples).items()
        if record.data.sources[source].fingerprint in seen and (among is None or source in among)
    )


def advice(
    recipe: Recipe,
    number: int,
    record: PhaseRecord,
    *,
    incoming_lr: float | None,
    base_peak: float | None,
    seen: Collection[str],
    new_rows: int,
) -> Iterator[Advice]:
    """Yield the warnings about phase `number`, which has not begun, whether or not `allow` silences them.

    Args:
        recipe: the whole run.
        number: the phase.
        record: the phase as it will be recorded.
        incoming_lr: LR of the last step before it; None if unknown.
        base_peak: the base's highest LR; None if unknown.
        seen: fingerprints of the data that the weights will have been trained on.
        new_rows: embedding rows appended to the base.
    """
    phase, curve = recipe.phases[number], record.curve
    where = f"phase {phase.name!r}"
    fresh = {name for name, source in recipe.sources.items() if source.role == "new"}
    undeclared = overlap(record, seen, fresh)
    if incoming_lr is not None and curve.peak > incoming_lr and undeclared > 0 and phase.train != "new_rows":
        yield Advice(
            "rewarm_on_same_data",
            f"{where}: {undeclared:.0%} of the mixture has role new and is data that the weights have seen, "
            f"and the LR rises from {incoming_lr:.3g} to {curve.peak:.3g}. {REWARM}",
        )
    yield from _rising_again(where, record)
    if base_peak is not None and curve.peak > base_peak and phase.train != "new_rows":
        yield Advice(
            "max_lr_above_base_peak",
            f"{where}: the LR rises to {curve.peak:.3g}, above the base's peak {base_peak:.3g}. {LARGE}",
        )
    yield from _too_short_for_steps(where, record, recipe.tokens_per_step)
    if recipe.model.base is None and number == 0:
        return  # random weights cannot forget
    held = record.data.shares(record.samples)
    replayed = sum(share for source, share in held.items() if source not in fresh) + undeclared
    if replayed == 0 and phase.train != "new_rows":
        yield Advice("no_replay", f"{where}: the mixture has no replay. {SHIFT}")
    first = float(curve(0))
    sudden = phase.schedule.warmup.amount == 0 and (incoming_lr is None or first > incoming_lr)
    if sudden and phase.length < SHORT_BUDGET and first > SAFE_LR:
        yield Advice(
            "short_budget_without_warmup",
            f"{where}: {phase.length:,} tokens begin at LR {first:.3g} without a warm-up. {SHORT}",
        )
    total = sum(phase.length for phase in recipe.phases)
    if number == 0 and new_rows and total < VOCABULARY_BUDGET:
        yield Advice(
            "small_budget_for_vocabulary",
            f"the run trains {new_rows:,} new embedding rows on {total:,} tokens. {VOCABULARY}",
        )


def samples_again(
    recipe: Recipe, records: Sequence[PhaseRecord], seen: Mapping[str, int]
) -> Iterator[Advice]:
    """Warn of the base's samples that a run in a new directory takes again: it restarts every source.

    Sources with role replay are repeated on purpose.

    Args:
        recipe: the whole run.
        records: every phase of it.
        seen: tokens by source fingerprint that the base was trained on.
    """
    names: dict[str, str] = {}
    planned: Counter[str] = Counter()
    for record in records:
        held = {source.fingerprint: name for name, source in record.data.sources.items()}
        names |= {key: name for key, name in held.items() if recipe.sources[name].role == "new"}
        planned.update(record.tokens_seen(record.samples))
    repeated = []
    for key in names.keys() & seen.keys() & planned.keys():
        again, known = (tokens // recipe.seq_len for tokens in (min(planned[key], seen[key]), seen[key]))
        repeated.append(f"{again:,} of its {known:,} samples of {names[key]}")
    if repeated:
        yield Advice(
            "base_samples_again",
            "this run restarts every source from its first sample, and the base has already trained on some "
            f"of them: up to {', '.join(sorted(repeated))} are repeated, which max_epochs does not count; a "
            "further phase in the base's own run directory continues each source where it stopped",
        )


def _too_short_for_steps(where: str, record: PhaseRecord, step: int) -> Iterator[Advice]:
    """Warn of a warm-up or a decay that no step sees: a step's LR is that of its first token."""
    curve = record.curve
    first = curve.pieces[0]
    if first.name == "warmup" and record.tokens // curve.schedule.cycles <= step and first.lr_from > 0:
        yield Advice(
            "phase_of_one_step",
            f"{where}: one step of {step:,} tokens has no room for a warm-up; its LR is {curve(0):.3g}",
        )
    for piece in curve.pieces:
        begins = -(-piece.start // step) * step
        seen = begins + step if begins == piece.start else begins
        if piece.name in ("anneal", "decay") and piece.lr_from != piece.lr_to and seen >= piece.stop:
            yield Advice(
                "decay_of_one_step",
                f"{where}: the {piece.name} of {int(piece.stop - piece.start):,} tokens changes no LR: a "
                f"step has {step:,} tokens and the LR of its start, {piece.lr_from:.3g}. Make it longer",
            )
            return


def _rising_again(where: str, record: PhaseRecord) -> Iterator[Advice]:
    """Warn of a schedule that rises after it has fallen, within its phase."""
    for before, piece in pairwise(record.curve.pieces):
        low = float(before.at(np.asarray(float(piece.start))))
        top = max(piece.lr_from, piece.lr_to)  # a cycle without a warm-up begins at its top
        if top > low:
            yield Advice(
                "rewarm_within_phase",
                f"{where}: the LR rises again, from {low:.3g} to {top:.3g} after "
                f"{int(piece.start):,} tokens. {REWARM}",
            )
            return
