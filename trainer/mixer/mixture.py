"""Which sample is number i: a pure function of the recipe and the sources' sizes.

Sample i of a phase is given by `Mixture.sample(phase, i)`, whatever the batch size, world size or machine.
Four steps lead to it, each in constant time and with nothing stored per sample:
segment of the phase → source, and its how-manieth sample this is (`interleave`) → plus what earlier segments
and phases took → epoch and place in the epoch's order (`permutation`).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore
from trainer.mixer.interleave import Period, period
from trainer.mixer.permutation import Ints, key_of, permute, permute_blocks, subkeys
from trainer.mixer.weights import weights_of
from trainer.recipe.schema import Recipe, Source

MIXTURE_VERSION = 1
"""Of the rules in this room; another number means other samples, and is part of the fingerprint."""


@dataclass(frozen=True)
class SourceSize:
    """How much a source holds, and the hash of it."""

    samples: int
    fingerprint: str
    tokens: int

    @classmethod
    def of(cls, store: TokenStore, seq_len: int) -> SourceSize:
        """The size of an opened token store."""
        return cls(store.samples(seq_len), store.fingerprint, store.tokens)


@dataclass(frozen=True)
class SampleRef:
    """One sample: which one of which source, and for the how-manieth time (from 0)."""

    phase: int
    source: str
    index: int
    epoch: int


@dataclass(frozen=True)
class Samples:
    """Several samples, as columns."""

    source: Ints
    """[n] number of the source in `Mixture.names`."""
    index: Ints
    """[n] sample of the source."""
    epoch: Ints
    """[n] how often the source had been used up before."""


@dataclass(frozen=True)
class ResolvedSegment:
    """A stretch of a phase with constant weights."""

    start: int
    """Samples into the phase."""
    weights: tuple[Fraction, ...]

    @property
    def period(self) -> Period:
        """The arrangement of the sources in this stretch."""
        return period(self.weights)


class Mixture:
    """The whole run's samples; made by `from_recipe`."""

    def __init__(
        self,
        recipe: Recipe,
        sizes: Mapping[str, SourceSize],
        spans: Sequence[Sequence[ResolvedSegment]],
        taken: Mapping[int, Mapping[str, int]],
        done: Sequence[int],
    ) -> None:
        self.names: tuple[str, ...] = tuple(recipe.sources)
        self.sources: tuple[Source, ...] = tuple(recipe.sources.values())
        self.sizes: tuple[SourceSize, ...] = tuple(sizes[name] for name in self.names)
        self.seed, self.seq_len = recipe.seed, recipe.seq_len
        self.phase_names: tuple[str, ...] = tuple(phase.name for phase in recipe.phases)
        self.spans: tuple[tuple[ResolvedSegment, ...], ...] = tuple(map(tuple, spans))
        self.phase_samples: tuple[int, ...] = tuple(_lengths(recipe, done))
        self._taken = {phase: dict(taken[phase]) for phase in taken}
        self._samples: Ints = np.array([size.samples for size in self.sizes], np.int64)
        self._keys = np.array([key_of("source", self.seed, name) for name in self.names], np.uint64)
        self._blocks: Ints = np.array([source.block for source in self.sources], np.int64)
        self._offsets: Ints = np.array([source.offset for source in self.sources], np.int64)
        limits = [self.limit(name) for name in self.names]
        self._limits: Ints = np.array([2**62 if cap is None else min(cap, 2**62) for cap in limits], np.int64)
        self._orders = {
            order: np.array([source.order == order for source in self.sources])
            for order in sorted({source.order for source in self.sources})
        }
        self._known_bases: dict[int, list[Ints]] = {}

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        sizes: Mapping[str, SourceSize],
        taken: Mapping[int, Mapping[str, int]] | None = None,
        done: Sequence[int] = (),
        begun_with: Mapping[int, Collection[str]] | None = None,
    ) -> Mixture:
        """The mixture of a recipe over sources of these sizes.

        `taken[p]` holds the samples of each source that a run had used when its phase p began (the
        `consumed(p, 0)` of then), as its checkpoint recorded it for every phase that has begun: the past
        stays as it was, whatever the recipe now says about it. Phases that have not begun go on where the
        planned ones before them leave each source. `done[p]` holds the samples that phase p has consumed,
        for every phase that has begun: a batch size that changed on the way moves its end.
        `begun_with[p]` names the sources that phase p, which has begun, takes from: one that the recipe
        declares since is none of them.

        Raises:
            Problems: everything that is wrong with sources and mixtures, at once.
        """
        problems = list(_source_problems(recipe, sizes))
        samples = {name: size.samples for name, size in sizes.items()}
        spans: list[list[ResolvedSegment]] = [[] for _ in recipe.phases]
        for number, phase in enumerate(recipe.phases if not problems else ()):
            for place, segment in enumerate(phase.mixture):
                field = f"phases.{number}.mixture.{place}"
                # One that an anneal cuts off stays: whoever ends a phase early need not rewrite its mixture.
                if segment.start >= (end := max(phase.tokens, phase.length)):
                    problems.append(
                        UserError(
                            f"is not reached: the phase ends after {end:,} tokens",
                            field=f"{field}.from",
                            value=segment.start,
                            fix="lower it or remove the segment",
                        )
                    )
                start = -(-segment.start // recipe.seq_len)  # the first sample with no earlier token
                try:
                    known = (begun_with or {}).get(number)
                    weights = weights_of(segment, recipe.sources, samples, field, known)
                    spans[number].append(ResolvedSegment(start, weights))
                except UserError as error:
                    problems.append(error)
        if problems:
            raise UserErrors(problems)
        return cls(recipe, sizes, spans, taken or {}, done)

    def sample(self, phase: int, i: int) -> SampleRef:
        """Sample i of a phase."""
        one = self.samples(phase, i, i + 1)
        return SampleRef(phase, self.names[one.source[0]], int(one.index[0]), int(one.epoch[0]))

    def samples(self, phase: int, start: int, stop: int) -> Samples:
        """Samples [start, stop) of a phase.

        Raises:
            UserError: a source would be used beyond its `max_epochs`.
        """
        source, use = np.empty(stop - start, np.int64), np.empty(stop - start, np.int64)
        for span, base, end in self._stretches(phase):
            begin = max(start, span.start)
            upto = stop if end is None else min(stop, end)
            if begin < upto:
                chosen, ordinal = span.period.at(np.arange(begin, upto) - span.start)
                source[begin - start : upto - start] = chosen
                use[begin - start : upto - start] = base[chosen] + ordinal
        return self._locate(source, use)

    def batch(self, phase: int, position: int, size: int) -> Samples:
        """Rows of the global batch [position, position + size): these samples, in an order of their own.

        The order is keyed by position and size, so that no source keeps to the same rows, and so ranks.
        """
        drawn = self.samples(phase, position, position + size)
        key = np.full(size, key_of("batch", self.seed, phase, position, size), np.uint64)
        rows = permute(np.arange(size), np.full(size, size), key)
        return Samples(drawn.source[rows], drawn.index[rows], drawn.epoch[rows])

    def counts(self, phase: int, i: int) -> dict[str, int]:
        """Samples of each source within the first i of a phase."""
        return self._named(self._used(phase, i) - self._bases(phase)[0])

    def consumed(self, phase: int, i: int) -> dict[str, int]:
        """Samples of each source in the whole run so far, when i samples of a phase are done."""
        return self._named(self._used(phase, i))

    def describe(self, phase: int) -> dict[str, Any]:
        """All that decides which samples a phase gives, as a flat dictionary to be compared by field."""
        told: dict[str, Any] = {"mixer": MIXTURE_VERSION, "seed": self.seed, "seq_len": self.seq_len}
        used: set[int] = set()
        for place, span in enumerate(self.spans[phase]):
            told[f"mixture.{place}.from_sample"] = span.start
            for number, weight in enumerate(span.weights):
                if weight:
                    used.add(number)
                    told[f"mixture.{place}.{self.names[number]}"] = str(weight)
        for number in sorted(used):
            field, source, size = f"sources.{self.names[number]}", self.sources[number], self.sizes[number]
            told[f"{field}.fingerprint"] = size.fingerprint
            told[f"{field}.samples"] = size.samples
            told[f"{field}.place"] = sorted(used).index(number)
            told[f"{field}.order"] = source.order
            if source.order == "blocks":
                told[f"{field}.block"] = source.block
            if source.order == "sequential":
                told[f"{field}.offset"] = source.offset
        told |= {f"sources.{name}.taken_before": used for name, used in self._began(phase).items()}
        return told

    def fingerprint(self, phase: int) -> str:
        """Hash of `describe`: equal fingerprints give equal samples."""
        text = json.dumps(self.describe(phase), sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def limit(self, name: str) -> int | None:
        """How many samples of a source may be used in all; None if repeats are free."""
        number = self.names.index(name)
        cap = self.sources[number].max_epochs
        return None if cap is None else int(cap * self.sizes[number].samples)

    def find_use(self, name: str, use: int) -> tuple[int, int] | None:
        """Phase and sample within it at which the run takes a source for the `use`-th time (from 0).

        None when it is not taken as often.
        """
        number = self.names.index(name)
        running = max(self._taken, default=0)  # what came before is recorded, not planned
        for phase in range(running, len(self.phase_samples)):
            if self._used(phase, self.phase_samples[phase])[number] <= use:
                continue
            for span, base, end in self._stretches(phase):
                if use < base[number]:  # only if a run's record says that it was used before
                    return phase, span.start
                if end is None or use < self._used(phase, end)[number]:
                    return phase, span.start + span.period.find(number, use - int(base[number]))
        return None

    def token_of(self, phase: int, i: int) -> int:
        """Tokens that the whole run has consumed before sample i of a phase, as planned."""
        return (sum(self.phase_samples[:phase]) + i) * self.seq_len

    def first_repeat(self) -> tuple[str, int] | None:
        """The source that first uses a sample again, and the token of the run at which it does."""
        found = []
        for name, size in zip(self.names, self.sizes, strict=True):
            if (at := self.find_use(name, size.samples)) is not None:
                found.append((self.token_of(*at), name))
        token, name = min(found, default=(0, ""))
        return (name, token) if found else None

    def check_epochs(self) -> None:
        """Refuses a plan in which a source runs out.

        Raises:
            Problems: names each source that is used beyond its `max_epochs`, and the token of the run.
        """
        problems = []
        for name in self.names:
            limit = self.limit(name)
            at = None if limit is None else self.find_use(name, limit)
            if at is not None:
                problems.append(self._runs_out(name, at))
        if problems:
            raise UserErrors(problems)

    def _runs_out(self, name: str, at: tuple[int, int]) -> UserError:
        number = self.names.index(name)
        samples = self.sizes[number].samples
        last = len(self.phase_samples) - 1
        wanted = self._used(last, self.phase_samples[last])[number] / samples
        return UserError(
            f"is not enough: its {samples:,} samples ({samples * self.seq_len:,} tokens) run out at token "
            f"{self.token_of(*at):,} of the run, in phase {self.phase_names[at[0]]}",
            field=f"sources.{name}.max_epochs",
            value=str(self.sources[number].max_epochs),
            fix=f"the plan uses {wanted:.4g} epochs: raise it, lower the source's weight, or train less",
        )

    def _stretches(self, phase: int) -> Iterator[tuple[ResolvedSegment, Ints, int | None]]:
        """Spans of a phase, each with the uses of every source before it, and where it ends (None: open)."""
        spans = self.spans[phase]
        ends = [span.start for span in spans[1:]]
        return zip(spans, self._bases(phase), [*ends, None], strict=True)

    def _began(self, phase: int) -> dict[str, int]:
        """Samples of each source that was used before a phase; of sources that left the recipe, too."""
        recorded = self._taken.get(min(phase, max(self._taken, default=0)), {})
        gone = {name: used for name, used in recorded.items() if name not in self.names}
        return {name: used for name, used in (gone | self.consumed(phase, 0)).items() if used}

    def _bases(self, phase: int) -> list[Ints]:
        """Uses of every source in the run before each span of a phase: [spans] of [sources]."""
        if phase not in self._known_bases:
            if phase in self._taken:
                before = np.array([self._taken[phase].get(name, 0) for name in self.names], np.int64)
            elif phase == 0:
                before = np.zeros(len(self.names), np.int64)
            else:
                before = self._used(phase - 1, self.phase_samples[phase - 1])
            bases = [before]
            spans = self.spans[phase]
            for span, after in pairwise(spans):
                bases.append(bases[-1] + span.period.counts(after.start - span.start))
            self._known_bases[phase] = bases
        return self._known_bases[phase]

    def _used(self, phase: int, i: int) -> Ints:
        """Uses of every source in the run when i samples of a phase are done: [sources]."""
        place = bisect_right([span.start for span in self.spans[phase]], i) - 1
        span = self.spans[phase][place]
        return self._bases(phase)[place] + span.period.counts(i - span.start)

    def _named(self, counts: Ints) -> dict[str, int]:
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _locate(self, source: Ints, use: Ints) -> Samples:
        """Sample and epoch of the `use`-th use (from 0) of each source: [n] each."""
        if (over := np.flatnonzero(use >= self._limits[source])).size:
            name = self.names[source[over[0]]]
            raise UserError(
                "is used up",
                field=f"sources.{name}.max_epochs",
                value=str(self.sources[source[over[0]]].max_epochs),
                fix="raise it, or stop the phase earlier",
            )
        sizes = self._samples[source]
        epoch, place = np.divmod(use, sizes)
        keys = subkeys(self._keys[source], epoch)
        index = np.empty_like(place)
        for order, members in self._orders.items():
            at = np.flatnonzero(members[source])
            if order == "sequential":
                index[at] = (place[at] + self._offsets[source[at]]) % sizes[at]
            elif order == "blocks":
                index[at] = permute_blocks(place[at], sizes[at], keys[at], self._blocks[source[at]])
            else:
                index[at] = permute(place[at], sizes[at], keys[at])
        return Samples(source, index, epoch)


def _lengths(recipe: Recipe, done: Sequence[int]) -> Iterator[int]:
    """Samples of each phase: its tokens in whole global batches, counted from where the phase stands."""
    for number, phase in enumerate(recipe.phases):
        stands = done[number] if number < len(done) else 0
        over = number < len(done) - 1
        left = 0 if over else max(0, -(-phase.length // recipe.seq_len) - stands)
        yield stands + -(-left // recipe.global_batch_size) * recipe.global_batch_size


def _source_problems(recipe: Recipe, sizes: Mapping[str, SourceSize]) -> Iterator[UserError]:
    """What is wrong with the sources themselves."""
    for name, source in recipe.sources.items():
        size, field = sizes[name], f"sources.{name}"
        if size.samples < 1:
            yield UserError(
                f"holds {size.tokens:,} tokens, too few for a sample of {recipe.seq_len:,} and its successor",
                field=field,
                value=source.path,
                fix="add data, lower seq_len or remove the source",
            )
        elif source.offset and source.order != "sequential":
            yield UserError(
                f"has no effect with order {source.order}",
                field=f"{field}.offset",
                value=source.offset,
                fix="set order: sequential, or remove it",
            )
        elif source.offset >= size.samples:
            yield UserError(
                f"lies beyond the source's {size.samples:,} samples",
                field=f"{field}.offset",
                value=source.offset,
                fix="count it in samples of seq_len tokens",
            )
