"""Which sample is number i: a pure function of the recipe and the sources' sizes.

`Mixture.samples(phase, i, i + 1)` gives sample i of a phase, whatever the batch size, world size or machine.
Four steps lead to it, each in constant time and with nothing stored per sample: the segment of the phase →
the source, and how many of its samples came before in the segment (`interleave`) → plus those that earlier
segments and phases used → epoch, and place in the epoch's order (`order`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore
from trainer.mixer.description import MixtureDescription, PastPhase, SegmentDescription, SourceDescription
from trainer.mixer.interleave import counts_within
from trainer.mixer.order import order_problems, phase_orders
from trainer.mixer.permutation import Ints, key_of, permute
from trainer.mixer.segments import RatioChange, ResolvedSegment, decision_samples, resolve_segments
from trainer.recipe.schema import Recipe, Source

MIXTURE_VERSION = 1
"""Version of the rules in this room: another number means other samples."""


@dataclass(frozen=True)
class SourceSize:
    """How much a source holds, and the fingerprint of its tokens."""

    samples: int
    fingerprint: str
    tokens: int

    @classmethod
    def of(cls, store: TokenStore, seq_len: int) -> SourceSize:
        """Return the size of an opened token store."""
        return cls(store.samples(seq_len), store.fingerprint, store.tokens)


@dataclass(frozen=True)
class Samples:
    """Several samples, in columns."""

    source: Ints
    """[n] number of the source in `Mixture.names`."""
    index: Ints
    """[n] sample of the source."""
    epoch: Ints
    """[n] how often the source had been used up before."""


class Mixture:
    """The samples of the whole run; made by `from_recipe`."""

    def __init__(
        self,
        recipe: Recipe,
        sizes: Mapping[str, SourceSize],
        spans: Sequence[Sequence[ResolvedSegment]],
        past: Sequence[PastPhase],
    ) -> None:
        self.names: tuple[str, ...] = tuple(recipe.sources)
        self.sources: tuple[Source, ...] = tuple(recipe.sources.values())
        self.sizes: tuple[SourceSize, ...] = tuple(sizes[name] for name in self.names)
        self.seed = recipe.seed
        self.phase_names: tuple[str, ...] = tuple(phase.name for phase in recipe.phases)
        self.spans: tuple[tuple[ResolvedSegment, ...], ...] = tuple(map(tuple, spans))
        self.phase_samples: tuple[int, ...] = tuple(_lengths(recipe, past))
        self._past = tuple(past)
        self._decide_every = [decision_samples(recipe, number) for number in range(len(recipe.phases))]
        self.orders = phase_orders(
            recipe,
            {name: size.samples for name, size in sizes.items()},
            {name: size.tokens for name, size in sizes.items()},
            _used_sources(spans),
            past,
        )
        self._keys = np.array([key_of("source", self.seed, name) for name in self.names], np.uint64)
        self._known_bases: dict[int, list[Ints]] = {}

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        sizes: Mapping[str, SourceSize],
        past: Sequence[PastPhase] = (),
        changes: Sequence[RatioChange] = (),
    ) -> Mixture:
        """Make the mixture of a recipe over sources of these sizes.

        `past` holds the phases that the run has begun, as its checkpoint recorded them. They stay as they
        were, whatever the recipe now says: what each source had given when they began, the samples they
        consumed (a batch size that was changed in mid-phase moves its end), and the sources they take from
        (one that the recipe declares later is not among them). Phases that have not begun go on where the
        planned ones before them leave each source. `changes` are what was decided about the replay so far.

        Raises:
            UserErrors: everything that is wrong with sources and mixtures, at once.
        """
        problems = list(_source_problems(recipe, sizes))
        samples = {name: size.samples for name, size in sizes.items()}
        spans: list[list[ResolvedSegment]] = []
        for number in range(len(recipe.phases) if not problems else 0):
            begun_with = past[number].data.sources if number < len(past) else None
            decided = [one for one in changes if one.phase == number]
            found, wrong = resolve_segments(recipe, number, samples, begun_with, decided)
            spans.append(found)
            problems += wrong
        if not problems:
            tokens = {name: size.tokens for name, size in sizes.items()}
            problems += order_problems(recipe, tokens, _used_sources(spans), len(past))
        if problems:
            raise UserErrors(problems)
        return cls(recipe, sizes, spans, past)

    def with_changes(self, recipe: Recipe, changes: Sequence[RatioChange]) -> Mixture:
        """Return the mixture of the same run after these decisions, which are all so far."""
        sizes = dict(zip(self.names, self.sizes, strict=True))
        return Mixture.from_recipe(recipe, sizes, self._past, changes)

    def samples(self, phase: int, start: int, stop: int) -> Samples:
        """Return samples [start, stop) of a phase.

        Raises:
            UserError: a source would be used beyond its `max_epochs`.
        """
        source, use = np.empty(stop - start, np.int64), np.empty(stop - start, np.int64)
        for span, base, end in self._stretches(phase):
            begin = max(start, span.start)
            last = stop if end is None else min(stop, end)
            if begin < last:
                chosen, ordinal = span.period.at(np.arange(begin, last) - span.start)
                source[begin - start : last - start] = chosen
                use[begin - start : last - start] = base[chosen] + ordinal
        return self._locate(phase, source, use)

    def batch(self, phase: int, position: int, size: int) -> Samples:
        """Return the rows of the global batch [position, position + size): its samples, shuffled.

        The order is keyed by position and size, so that no source stays on the same rows and ranks.
        """
        drawn = self.samples(phase, position, position + size)
        key = np.full(size, key_of("batch", self.seed, phase, position, size), np.uint64)
        rows = permute(np.arange(size), np.full(size, size), key)
        return Samples(drawn.source[rows], drawn.index[rows], drawn.epoch[rows])

    def consumed(self, phase: int, i: int) -> dict[str, int]:
        """Count the samples of each source that the run has used when i samples of a phase are done."""
        return self._named(self._used(phase, i))

    def describe(self, phase: int) -> MixtureDescription:
        """Return all that decides which samples a phase gives, to be recorded and compared."""
        segments = []
        for span in self.spans[phase]:
            weights = zip(self.names, span.weights, strict=True)
            segments.append(
                SegmentDescription(span.start, {name: str(weight) for name, weight in weights if weight})
            )
        used = [name for name in self.names if any(name in segment.weights for segment in segments)]
        return MixtureDescription(
            MIXTURE_VERSION,
            self.seed,
            self.orders[phase].seq_len,
            tuple(segments),
            {name: self._describe_source(phase, name, place) for place, name in enumerate(used)},
            self._began(phase),
            self._decide_every[phase],
        )

    def _describe_source(self, phase: int, name: str, place: int) -> SourceDescription:
        number, order = self.names.index(name), self.orders[phase]
        source, window = self.sources[number], int(order.windows[number])
        return SourceDescription(
            self.sizes[number].fingerprint,
            int(order.samples[number]),
            place,
            source.order,
            window if source.order == "blocks" or window > 1 else None,
            int(order.offsets[number]) if source.order == "sequential" else None,
        )

    def limit(self, name: str) -> Fraction | None:
        """Return how many samples of the recipe's `seq_len` a source may give; None without a limit."""
        number = self.names.index(name)
        cap = self.sources[number].max_epochs
        return None if cap is None else cap * self.sizes[number].samples

    def find_use(self, name: str, use: Fraction | int) -> tuple[int, int] | None:
        """Find the phase, and the sample within it, that is the `use`-th use (from 0) of a source.

        None if the source is not used that often. Uses are counted in samples of the recipe's `seq_len`; in a
        phase with another one, as many are meant as are the same share of an epoch.
        """
        number = self.names.index(name)
        running = max(len(self._past) - 1, 0)  # what came before is recorded, not planned
        epochs = Fraction(use) / self.sizes[number].samples
        for phase in range(running, len(self.phase_samples)):
            use = int(epochs * int(self.orders[phase].samples[number]))
            if self._used(phase, self.phase_samples[phase])[number] <= use:
                continue
            for span, base, end in self._stretches(phase):
                if use < base[number]:  # the record of the past says that it was used before
                    return phase, span.start
                if end is None or use < self._used(phase, end)[number]:
                    return phase, span.start + span.period.find(number, use - int(base[number]))
        return None

    def token_of(self, phase: int, i: int) -> int:
        """Return the tokens that the run has consumed before sample i of a phase, as planned."""
        lengths = [order.seq_len for order in self.orders]
        before = zip(self.phase_samples[:phase], lengths[:phase], strict=True)
        return sum(samples * length for samples, length in before) + i * lengths[phase]

    @property
    def total_tokens(self) -> int:
        """The tokens of the whole run, as planned."""
        return self.token_of(len(self.phase_samples) - 1, self.phase_samples[-1])

    def drawn(self, phase: int, i: int) -> dict[str, tuple[int, int]]:
        """Count the samples and the tokens of each source that the run has taken when i samples are done."""
        samples, tokens = np.zeros(len(self.names), np.int64), np.zeros(len(self.names), np.int64)
        for number in range(phase + 1):
            # All that is recorded before the first phase counts, in its unit.
            began = self._bases(number)[0] if number else np.zeros_like(samples)
            part = self._ended(number) if number < phase else self._used(phase, i)
            samples += part - began
            tokens += (part - began) * self.orders[number].lengths
        return dict(zip(self.names, zip(samples.tolist(), tokens.tolist(), strict=True), strict=True))

    def epochs(self, phase: int, i: int) -> dict[str, float]:
        """Count how often each source has been used up when i samples of a phase are done."""
        used, sizes = self._used(phase, i).tolist(), self.orders[phase].samples.tolist()
        return {name: used[at] / sizes[at] for at, name in enumerate(self.names)}

    def first_repeat(self) -> tuple[str, int] | None:
        """Find the first source that repeats a sample, and the token of the run at which it does."""
        found = []
        for name, size in zip(self.names, self.sizes, strict=True):
            if (at := self.find_use(name, size.samples)) is not None:
                found.append((self.token_of(*at), name))
        token, name = min(found, default=(0, ""))
        return (name, token) if found else None

    def check_epochs(self) -> None:
        """Refuse a plan in which a source runs out.

        Raises:
            UserErrors: names each source that is used beyond its `max_epochs`, and the token of the run.
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
        order, last = self.orders[at[0]], len(self.phase_samples) - 1
        samples = int(order.samples[number])
        wanted = self.epochs(last, self.phase_samples[last])[name]
        fix = f"the plan uses {wanted:.4g} epochs: raise it, lower the source's weight, or train less"
        for phase in range(1, at[0] + 1):
            before = self.orders[phase - 1]
            inside = self._ended(phase - 1)[number] % before.samples[number]
            if inside and self.orders[phase].ends_epoch(before, number):
                fix += (
                    f"; phases.{phase} reads longer samples than the source's order was made for, so it "
                    "begins another epoch: let it take from a source of its own"
                )
        return UserError(
            f"is not enough: the source's {samples:,} samples ({samples * order.lengths[number]:,} tokens) "
            f"run out at token {self.token_of(*at):,} of the run, in phase {self.phase_names[at[0]]}",
            field=f"sources.{name}.max_epochs",
            value=str(self.sources[number].max_epochs),
            fix=fix,
        )

    def _stretches(self, phase: int) -> Iterator[tuple[ResolvedSegment, Ints, int | None]]:
        """Yield each span of a phase with the uses of every source before it, and its end (None: open)."""
        spans = self.spans[phase]
        ends = [span.start for span in spans[1:]]
        return zip(spans, self._bases(phase), [*ends, None], strict=True)

    def _began(self, phase: int) -> dict[str, int]:
        """Count the samples of each source used before a phase, also of sources no longer in the recipe."""
        recorded = self._past[min(phase, len(self._past) - 1)].data.taken_before if self._past else {}
        gone = {name: used for name, used in recorded.items() if name not in self.names}
        return {name: used for name, used in (gone | self.consumed(phase, 0)).items() if used}

    def _bases(self, phase: int) -> list[Ints]:
        """Count the uses of every source in the run before each span of a phase: [spans] of [sources]."""
        if phase not in self._known_bases:
            if phase < len(self._past):
                taken = self._past[phase].data.taken_before
                before = np.array([taken.get(name, 0) for name in self.names], np.int64)
            elif phase == 0:
                before = np.zeros(len(self.names), np.int64)
            else:
                ended = self._used(phase - 1, self.phase_samples[phase - 1])
                before = self.orders[phase].after(self.orders[phase - 1], ended)
            bases = [before]
            spans = self.spans[phase]
            for span, after in pairwise(spans):
                counts = counts_within(span.weights, after.start - span.start)
                bases.append(bases[-1] + np.array(counts, np.int64))
            self._known_bases[phase] = bases
        return self._known_bases[phase]

    def _ended(self, phase: int) -> Ints:
        """Count the uses at a phase's end, by the record of the next phase where there is one: [sources]."""
        planned = self._used(phase, self.phase_samples[phase])
        if phase + 1 >= len(self._past):
            return planned
        return np.where(self.orders[phase + 1].like(self.orders[phase]), self._bases(phase + 1)[0], planned)

    def _used(self, phase: int, i: int) -> Ints:
        """Count the uses of every source in the run when i samples of a phase are done: [sources]."""
        place = bisect_right([span.start for span in self.spans[phase]], i) - 1
        span = self.spans[phase][place]
        return self._bases(phase)[place] + span.period.counts(i - span.start)

    def _named(self, counts: Ints) -> dict[str, int]:
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _locate(self, phase: int, source: Ints, use: Ints) -> Samples:
        """Find the sample and the epoch of the `use`-th use (from 0) of each source: [n] each."""
        order = self.orders[phase]
        if (over := np.flatnonzero(use >= order.limits[source])).size:
            number = int(source[over[0]])
            field, value = f"sources.{self.names[number]}.max_epochs", str(self.sources[number].max_epochs)
            what, fix = "is reached: all samples of the source are used", "raise it, or end the phase earlier"
            raise UserError(what, field=field, value=value, fix=fix)
        return Samples(source, *order.locate(source, use, self._keys))


def _used_sources(spans: Sequence[Sequence[ResolvedSegment]]) -> list[list[bool]]:
    """Tell for each phase which sources it takes from: [phases][sources]."""
    return [
        [any(weights) for weights in zip(*(span.weights for span in phase), strict=True)] for phase in spans
    ]


def _lengths(recipe: Recipe, past: Sequence[PastPhase]) -> Iterator[int]:
    """Yield the samples of each phase: what it has consumed if it is over, else what it will have."""
    for number in range(len(recipe.phases)):
        done = past[number].samples if number < len(past) else 0
        yield done if number < len(past) - 1 else recipe.phase_samples(number, done)


def _source_problems(recipe: Recipe, sizes: Mapping[str, SourceSize]) -> Iterator[UserError]:
    """Find what is wrong with the sources themselves."""
    for name, source in recipe.sources.items():
        size, field = sizes[name], f"sources.{name}"
        if size.samples < 1:
            what = (
                f"holds {size.tokens:,} tokens, too few for a sample of {recipe.seq_len:,} and the next one"
            )
            fix = "add data, lower seq_len, or remove the source"
            yield UserError(what, field=field, value=source.path, fix=fix)
        elif source.offset and source.order != "sequential":
            what, fix = f"has no effect with order {source.order}", "set order: sequential, or remove it"
            yield UserError(what, field=f"{field}.offset", value=source.offset, fix=fix)
        elif source.offset >= size.samples:
            what, fix = (
                f"is beyond the source's {size.samples:,} samples",
                "give it in samples of seq_len tokens",
            )
            yield UserError(what, field=f"{field}.offset", value=source.offset, fix=fix)
