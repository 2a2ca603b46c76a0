"""What a plan takes from each source, for `rewarm plan`; exact, and known before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

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
    """Every source at the end of every phase, in the recipe's order."""
    rows = []
    for phase, samples in enumerate(mixture.phase_samples):
        began = mixture.consumed(phase, 0)
        last = phase + 1 == len(mixture.phase_samples)
        ended = mixture.consumed(phase, samples) if last else mixture.consumed(phase + 1, 0)
        targets = target_shares(mixture, phase, 0, samples)
        for name, source, size in zip(mixture.names, mixture.sources, mixture.sizes, strict=True):
            rows.append(
                Usage(
                    phase=mixture.phase_names[phase],
                    source=name,
                    role=source.role,
                    share=targets[name],
                    phase_tokens=(ended[name] - began[name]) * mixture.seq_len,
                    tokens=ended[name] * mixture.seq_len,
                    samples=ended[name],
                    epochs=ended[name] / size.samples,
                    max_epochs=source.max_epochs,
                )
            )
    return rows


def target_shares(mixture: Mixture, phase: int, start: int, stop: int) -> dict[str, Fraction]:
    """Each source's weight over samples [start, stop) of a phase: the mean over the segments they lie in."""
    expected = [Fraction(0)] * len(mixture.names)
    spans = mixture.spans[phase]
    ends = [*(span.start for span in spans[1:]), stop]
    for span, end in zip(spans, ends, strict=True):
        length = max(0, min(stop, end) - max(start, span.start))
        expected = [sum_ + weight * length for sum_, weight in zip(expected, span.weights, strict=True)]
    length = max(1, stop - start)
    return {name: sum_ / length for name, sum_ in zip(mixture.names, expected, strict=True)}
