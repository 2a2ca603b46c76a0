"""What a mixture takes from each source: exact, and known before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from tokenization.errors import UserError
from trainer.mixer.mixture import Mixture


@dataclass(frozen=True)
class Usage:
    """One source at the end of one phase."""

    phase: str
    source: str
    role: str
    share: Fraction
    """Target share of the phase's tokens, over all its segments."""
    phase_tokens: int
    """Tokens taken in this phase."""
    tokens: int
    """Tokens taken in the run so far."""
    samples: int
    """Samples taken in the run so far."""
    epochs: float
    """How often the source has been used up so far."""
    max_epochs: Fraction | None


def account(mixture: Mixture) -> list[Usage]:
    """Return every source at the end of every phase, in the recipe's order."""
    rows = []
    for phase, samples in enumerate(mixture.phase_samples):
        last = phase + 1 == len(mixture.phase_samples)
        began = mixture.drawn(phase, 0)
        ended = mixture.drawn(phase, samples) if last else mixture.drawn(phase + 1, 0)
        epochs = mixture.epochs(phase, samples)
        targets = target_shares(mixture, phase, 0, samples)
        for name, source in zip(mixture.names, mixture.sources, strict=True):
            rows.append(
                Usage(
                    phase=mixture.phase_names[phase],
                    source=name,
                    role=source.role,
                    share=targets[name],
                    phase_tokens=ended[name][1] - began[name][1],
                    tokens=ended[name][1],
                    samples=ended[name][0],
                    epochs=epochs[name],
                    max_epochs=source.max_epochs,
                )
            )
    return rows


def target_shares(mixture: Mixture, phase: int, start: int, stop: int) -> dict[str, Fraction]:
    """Return each source's weight over samples [start, stop) of a phase: the mean over their segments."""
    expected = [Fraction(0)] * len(mixture.names)
    spans = mixture.spans[phase]
    ends = [*(span.start for span in spans[1:]), stop]
    for span, end in zip(spans, ends, strict=True):
        length = max(0, min(stop, end) - max(start, span.start))
        expected = [sum_ + weight * length for sum_, weight in zip(expected, span.weights, strict=True)]
    length = max(1, stop - start)
    return {name: sum_ / length for name, sum_ in zip(mixture.names, expected, strict=True)}


_CHUNK = 65_536


@dataclass(frozen=True)
class SampleRow:
    """Sample number i of the run."""

    i: int
    phase: str
    source: str
    index: int
    epoch: int


@dataclass(frozen=True)
class SourceShare:
    """What one source gives to a window of the run."""

    source: str
    samples: int
    share: float
    """Realised share: samples of the source per sample of the window."""
    target: Fraction
    """The weight, over the segments that the window lies in."""
    off_by: float
    """Samples above the target; negative if below."""
    coverage: float
    """Share of the source's samples that the run has used at the end of the window."""
    epochs: float
    """How often the source has been used up at the end of the window."""


def sample_rows(mixture: Mixture, start: int, stop: int) -> Iterator[SampleRow]:
    """Yield the samples [start, stop) of the run, one after another.

    Raises:
        UserError: the window is not within the run, or a source is used beyond its `max_epochs`.
    """
    for phase, begin, end in _windows(mixture, start, stop):
        before = sum(mixture.phase_samples[:phase])
        for chunk in range(begin, end, _CHUNK):
            drawn = mixture.samples(phase, chunk, min(chunk + _CHUNK, end))
            columns = zip(drawn.source.tolist(), drawn.index.tolist(), drawn.epoch.tolist(), strict=True)
            for i, (source, index, epoch) in enumerate(columns, before + chunk):
                yield SampleRow(i, mixture.phase_names[phase], mixture.names[source], index, epoch)


def source_shares(mixture: Mixture, start: int, stop: int) -> list[SourceShare]:
    """Compare realised with target shares of a window, for every source; its length costs no time.

    Raises:
        UserError: the window is not within the run.
    """
    taken = dict.fromkeys(mixture.names, 0)
    wanted = dict.fromkeys(mixture.names, Fraction(0))
    epochs = dict.fromkeys(mixture.names, 0.0)
    for phase, begin, end in _windows(mixture, start, stop):
        targets = target_shares(mixture, phase, begin, end)
        before, consumed = mixture.consumed(phase, begin), mixture.consumed(phase, end)
        epochs = mixture.epochs(phase, end)
        for name in mixture.names:
            taken[name] += consumed[name] - before[name]
            wanted[name] += targets[name] * (end - begin)
    length = stop - start
    return [
        SourceShare(
            source=name,
            samples=taken[name],
            share=taken[name] / length,
            target=wanted[name] / length,
            off_by=float(taken[name] - wanted[name]),
            coverage=min(1.0, epochs[name]),
            epochs=epochs[name],
        )
        for name in mixture.names
    ]


def _windows(mixture: Mixture, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cut a window at the phases' boundaries: phase, begin and end within it."""
    total = sum(mixture.phase_samples)
    if not 0 <= start < stop <= total:
        what, fix = "is not a window A:B of the run's samples", f"use 0 <= A < B <= {total}"
        raise UserError(what, field="samples", value=f"{start}:{stop}", fix=fix)
    before = 0
    for phase, samples in enumerate(mixture.phase_samples):
        begin, end = max(start - before, 0), min(stop - before, samples)
        if begin < end:
            yield phase, begin, end
        before += samples
