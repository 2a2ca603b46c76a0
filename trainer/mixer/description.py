"""What a checkpoint records of a mixture: which samples a phase takes, and what the run took before it.

The record is written as a flat mapping, so that two of them are compared field by field and a difference has
a name: `mixture.0.from_sample`, `mixture.0.zh`, `sources.zh.fingerprint`, `sources.zh.taken_before`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

_START = "from_sample"
_TAKEN = "taken_before"


@dataclass(frozen=True)
class SegmentDescription:
    """Weights from a sample of the phase on."""

    from_sample: int
    weights: Mapping[str, str]
    """Exact shares by source name, such as `3/4`; none is 0."""


@dataclass(frozen=True)
class SourceDescription:
    """All that decides which samples a source gives, and in which order."""

    fingerprint: str
    samples: int
    place: int
    """Rank among the phase's sources; ties of the interleaving go by it."""
    order: str
    block: int | None = None
    """Samples in a window; only with order `blocks`."""
    offset: int | None = None
    """First sample; only with order `sequential`."""


@dataclass(frozen=True)
class MixtureDescription:
    """All that decides which samples a phase gives: equal descriptions give equal samples."""

    mixer: int
    """Version of the mixer's rules."""
    seed: int
    seq_len: int
    segments: tuple[SegmentDescription, ...]
    sources: Mapping[str, SourceDescription]
    """The sources that the phase takes from, by name."""
    taken_before: Mapping[str, int]
    """Samples of each source that the run had used when the phase began; sources not used are left out."""
    decide_every: int | None = None
    """Samples between decisions about the replay, where the phase has a forgetting budget."""

    def shares(self, samples: int) -> dict[str, float]:
        """Return each source's share of the first `samples` samples of the phase, by name."""
        stops = [segment.from_sample for segment in self.segments[1:]] + [samples]
        found: dict[str, float] = {}
        for segment, stop in zip(self.segments, stops, strict=True):
            held = max(min(stop, samples) - segment.from_sample, 0) / max(samples, 1)
            for name, weight in segment.weights.items():
                found[name] = found.get(name, 0.0) + held * float(Fraction(weight))
        return found

    def truncated(self, samples: int) -> MixtureDescription:
        """Return the description of the same phase cut after so many samples, without what is not reached."""
        reached = tuple(one for one in self.segments if one.from_sample < max(samples, 1))
        used = {name for segment in reached for name in segment.weights}
        kept = {name: source for name, source in self.sources.items() if name in used}
        places = sorted(source.place for source in kept.values())
        kept = {name: replace(source, place=places.index(source.place)) for name, source in kept.items()}
        return replace(self, segments=reached, sources=kept)

    def to_json(self) -> dict[str, Any]:
        """Return the flat mapping that is compared by field and stored in checkpoints."""
        tree: dict[str, Any] = {"mixer": self.mixer, "seed": self.seed, "seq_len": self.seq_len}
        if self.decide_every is not None:
            tree["decide_every"] = self.decide_every
        for number, segment in enumerate(self.segments):
            tree[f"mixture.{number}.{_START}"] = segment.from_sample
            tree |= {f"mixture.{number}.{_escaped(name)}": share for name, share in segment.weights.items()}
        for name, source in self.sources.items():
            tree |= {f"sources.{name}.{key}": v for key, v in vars(source).items() if v is not None}
        return tree | {f"sources.{name}.{_TAKEN}": used for name, used in self.taken_before.items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> MixtureDescription:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError or ValueError: `to_json` did not write it.
        """
        segments: dict[int, dict[str, Any]] = defaultdict(dict)
        sources: dict[str, dict[str, Any]] = defaultdict(dict)
        taken: dict[str, int] = {}
        for key, value in tree.items():
            kind, _, rest = key.partition(".")
            if kind == "mixture":
                number, _, name = rest.partition(".")
                segments[int(number)][name] = value
            elif kind == "sources":
                name, _, field = rest.rpartition(".")
                if field == _TAKEN:
                    taken[name] = value
                else:
                    sources[name][field] = value
        return cls(
            mixer=tree["mixer"],
            seed=tree["seed"],
            seq_len=tree["seq_len"],
            segments=tuple(
                SegmentDescription(one.pop(_START), {_unescaped(name): share for name, share in one.items()})
                for _, one in sorted(segments.items())
            ),
            sources={name: SourceDescription(**one) for name, one in sources.items()},
            taken_before=taken,
            decide_every=tree.get("decide_every"),
        )


def _escaped(name: str) -> str:
    """Prefix a source called `from_sample` with a dot: its weight is not the segment's start."""
    return f".{name}" if name.lstrip(".") == _START else name


def _unescaped(name: str) -> str:
    return name[1:] if name.lstrip(".") == _START else name


@dataclass(frozen=True, order=True)
class PassedOver:
    """Samples [start, stop) of a phase that the run passes over: they made a spike.

    They count as consumed, so that sample number i is the same with and without them.
    """

    phase: int
    start: int
    stop: int

    def touches(self, phase: int, start: int, stop: int) -> bool:
        """Tell whether a batch [start, stop) of a phase has one of these samples."""
        return self.phase == phase and self.start < stop and start < self.stop


@dataclass(frozen=True)
class PastPhase:
    """A phase that has begun, as its run recorded it: the mixture takes it as it was, not as the recipe says.

    A run's past is the sequence of these, from its first phase to the one that runs.
    """

    samples: int
    """Consumed so far."""
    data: MixtureDescription
