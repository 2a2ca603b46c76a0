"""`rewarm data simulate`: any window of a run's samples, and how well it keeps the shares; without a model.

Here a sample is counted over the whole run: phase 1 goes on where phase 0's number ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from trainer.errors import UserError
from trainer.mixer.account import target_shares
from trainer.mixer.mixture import Mixture

_CHUNK = 65_536


@dataclass(frozen=True)
class Row:
    """Sample number i of the run."""

    i: int
    phase: str
    source: str
    index: int
    epoch: int


@dataclass(frozen=True)
class Share:
    """What one source gives to a window."""

    source: str
    samples: int
    share: float
    """Realised: samples of the source per sample of the window."""
    target: Fraction
    """The weight, over the segments that the window lies in."""
    off_by: float
    """Samples more (or fewer, below 0) than the target asks for."""
    coverage: float
    """Share of the source's samples that the run has used at the end of the window."""
    epochs: float
    """How often the source has been used up at the end of the window."""


def rows(mixture: Mixture, start: int, stop: int) -> Iterator[Row]:
    """The samples [start, stop) of the run, one after another.

    Raises:
        UserError: the window does not lie in the run, or a source is used beyond its `max_epochs`.
    """
    for phase, begin, end in _windows(mixture, start, stop):
        before = sum(mixture.phase_samples[:phase])
        for chunk in range(begin, end, _CHUNK):
            drawn = mixture.samples(phase, chunk, min(chunk + _CHUNK, end))
            columns = zip(drawn.source.tolist(), drawn.index.tolist(), drawn.epoch.tolist(), strict=True)
            for i, (source, index, epoch) in enumerate(columns, before + chunk):
                yield Row(i, mixture.phase_names[phase], mixture.names[source], index, epoch)


def shares(mixture: Mixture, start: int, stop: int) -> list[Share]:
    """Realised against target shares of a window, for every source; by arithmetic, whatever its length.

    Raises:
        UserError: the window does not lie in the run.
    """
    taken = dict.fromkeys(mixture.names, 0)
    wanted = dict.fromkeys(mixture.names, Fraction(0))
    consumed = dict.fromkeys(mixture.names, 0)
    for phase, begin, end in _windows(mixture, start, stop):
        targets = target_shares(mixture, phase, begin, end)
        before, consumed = mixture.consumed(phase, begin), mixture.consumed(phase, end)
        for name in mixture.names:
            taken[name] += consumed[name] - before[name]
            wanted[name] += targets[name] * (end - begin)
    length = stop - start
    return [
        Share(
            source=name,
            samples=taken[name],
            share=taken[name] / length,
            target=wanted[name] / length,
            off_by=float(taken[name] - wanted[name]),
            coverage=min(1.0, consumed[name] / size.samples),
            epochs=consumed[name] / size.samples,
        )
        for name, size in zip(mixture.names, mixture.sizes, strict=True)
    ]


def _windows(mixture: Mixture, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The window cut at phase boundaries: phase, begin and end within it."""
    total = sum(mixture.phase_samples)
    if not 0 <= start < stop <= total:
        raise UserError(
            "is no window of the run's samples",
            field="samples",
            value=f"{start}:{stop}",
            mend=f"give A:B with 0 <= A < B <= {total}",
        )
    before = 0
    for phase, samples in enumerate(mixture.phase_samples):
        begin, end = max(start - before, 0), min(stop - before, samples)
        if begin < end:
            yield phase, begin, end
        before += samples
