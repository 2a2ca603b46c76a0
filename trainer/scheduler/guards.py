"""What the papers on continued pretraining warn of, each with its number and a name to silence it.

A guard looks at a phase that lies ahead and says what its own choice cost somebody else. One of them,
a re-warm on the data that the weights have already seen, is a refusal; `allow` lifts it by its name.
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
)
"""Everything that `allow` may hold."""


LARGEST_REPLAY = 0.5
"""The largest share of old data that Ibrahim et al. 2024 call replay; above it, it is the same data again."""


TRACE = 0.1
"""A source that gave less than this share of the tokens so far is a trace, not the data of the base."""


SHORT_BUDGET = 100_000_000_000


SAFE_LR = 3e-5


VOCABULARY_BUDGET = 2_000_000_000


_PUBLISHED_PEAKS = {"llama27b": 3e-4, "llama213b": 3e-4, "llama270b": 1.5e-4, "pythia410m": 3e-4}
"""Peak LRs that the makers of a base have published, by its name without `-` and `_`."""


@dataclass(frozen=True)
class Advice:
    """Something that a paper advises against."""

    name: str
    text: str


def check_allow(recipe: Recipe) -> None:
    """Refuses names in `allow` that lift and silence nothing.

    Raises:
        Problems: one for each, with the nearest known name.
    """
    unknown = [name for name in recipe.allow if name not in GUARDS]
    if unknown:
        raise UserErrors(
            UserError(
                "is no warning or refusal",
                field="allow",
                value=name,
                fix=did_you_mean(name, GUARDS) or f"known are {', '.join(GUARDS)}",
            )
            for name in unknown
        )


def published_peak(base: str | None) -> float | None:
    """The highest LR of a well-known base model, by its name, however that is joined."""
    joined = (base or "").lower().replace("-", "").replace("_", "")
    return next((peak for name, peak in _PUBLISHED_PEAKS.items() if name in joined), None)


def substantial(seen: Mapping[str, int]) -> set[str]:
    """Of the tokens by fingerprint, those fingerprints that are more than a trace."""
    return {fingerprint for fingerprint, tokens in seen.items() if tokens >= TRACE * sum(seen.values())}


def overlap(record: PhaseRecord, seen: Collection[str], among: Collection[str] | None = None) -> float:
    """Share of the phase's mixture whose sources' fingerprints were seen, counting only sources `among`."""
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
    reached: float | None,
    base_peak: float | None,
    seen: Collection[str],
    new_rows: int,
) -> Iterator[Advice]:
    """What is to be said about phase `number`, which lies ahead; names in `allow` are still among it.

    Args:
        recipe: the whole run.
        number: the phase.
        record: the same, as it will be recorded.
        reached: LR that the weights have when it begins; None where unknown.
        base_peak: the base's highest LR; None where unknown.
        seen: fingerprints of the data that the weights will have been trained on.
        new_rows: embedding rows appended to the base.
    """
    phase, curve = recipe.phases[number], record.curve
    where = f"phase {phase.name!r}"
    fresh = {name for name, source in recipe.sources.items() if source.role == "new"}
    undeclared = overlap(record, seen, fresh)
    if reached is not None and curve.peak > reached and undeclared > 0 and phase.train != "new_rows":
        yield Advice(
            "rewarm_on_same_data",
            f"{where}: {undeclared:.0%} of the mixture has role new and is data that the weights have seen, "
            f"and the LR rises from {reached:.3g} to {curve.peak:.3g}. {REWARM}",
        )
    yield from _rising_again(where, record)
    if base_peak is not None and curve.peak > base_peak and phase.train != "new_rows":
        yield Advice(
            "max_lr_above_base_peak",
            f"{where}: the LR rises to {curve.peak:.3g}, above the base's own peak {base_peak:.3g}. {LARGE}",
        )
    if recipe.model.base is None and number == 0:
        return  # random weights have nothing to forget
    held = record.data.shares(record.samples)
    replayed = sum(share for source, share in held.items() if source not in fresh) + undeclared
    if replayed == 0 and phase.train != "new_rows":
        yield Advice("no_replay", f"{where}: no replay. {SHIFT}")
    first = float(curve(0))
    sudden = phase.schedule.warmup.amount == 0 and (reached is None or first > reached)
    if sudden and phase.length < SHORT_BUDGET and first > SAFE_LR:
        yield Advice(
            "short_budget_without_warmup",
            f"{where}: {phase.length:,} tokens from LR {first:.3g} without a warm-up. {SHORT}",
        )
    total = sum(phase.length for phase in recipe.phases)
    if number == 0 and new_rows and total < VOCABULARY_BUDGET:
        yield Advice(
            "small_budget_for_vocabulary",
            f"{new_rows:,} new embedding rows and {total:,} tokens in all. {VOCABULARY}",
        )


def samples_again(
    recipe: Recipe, records: Sequence[PhaseRecord], seen: Mapping[str, int]
) -> Iterator[Advice]:
    """The base's own samples, which a run in a new directory takes again: it begins every source anew.

    Those that are declared as replay are meant so.

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
        planned.update(record.tokens_seen(record.samples, recipe.seq_len))
    told = []
    for key in names.keys() & seen.keys() & planned.keys():
        again, known = (tokens // recipe.seq_len for tokens in (min(planned[key], seen[key]), seen[key]))
        told.append(f"{again:,} of its {known:,} samples of {names[key]}")
    if told:
        yield Advice(
            "base_samples_again",
            "this run begins its sources anew, and the base was trained on some: up to "
            f"{', '.join(sorted(told))} come again, which max_epochs does not count; a further phase in the "
            "base's own run directory goes on where they were left",
        )


def _rising_again(where: str, record: PhaseRecord) -> Iterator[Advice]:
    """A schedule that rises after it has fallen, on the one mixture of its phase."""
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
