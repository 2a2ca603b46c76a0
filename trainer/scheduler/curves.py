"""The learning rate as a pure function of trained tokens.

A schedule is laid out as *pieces*: stretches of the phase, one after another and without gaps, each of one
shape between two learning rates. Its value, its joints and the start of its decay are read off the pieces.

The optimizer step that starts after `t` trained tokens of the phase uses `Curve(…)(t)`, 0 <= t < length.
Tokens beyond the end hold the last value. All arithmetic is float64; pieces meet exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.recipe.schedule import Schedule

Floats = npt.NDArray[np.float64]

_CELLS = 4096
"""Places at which the area under the curve is measured."""

SHARPNESS = 10.0
"""Of the inverse square root: alpha in h(x) = 1/sqrt(1 + alpha x) - 1 (Ibrahim et al. 2024)."""


@dataclass(frozen=True)
class CurvePiece:
    """A stretch of the curve: from `lr_from` at `origin` to `lr_to` at `stop`, in force from `start` on."""

    name: str
    shape: str
    start: Fraction
    stop: Fraction
    lr_from: float
    lr_to: float
    origin: Fraction | None = None
    """Where the shape begins, if not at `start`."""

    def at(self, tokens: Floats) -> Floats:
        """Return the learning rate at tokens of the phase in this piece (after it: `lr_to`)."""
        begin = float(self.start if self.origin is None else self.origin)
        end = float(self.stop)  # rounded as `tokens` are, so that the share is exactly 1 there
        share = np.clip((tokens - begin) / (end - begin), 0.0, 1.0)
        return interpolate(self.shape, self.lr_from, self.lr_to, share)


def interpolate(shape: str, lr_from: float, lr_to: float, share: Floats) -> Floats:
    """Interpolate from `lr_from` at share 0 to `lr_to` at share 1; both are met exactly.

    linear, cosine (Ibrahim et al. 2024, eq. 2), inverse_sqrt (same, infinite schedules), 1-sqrt and
    exponential (WSD, arXiv 2404.06395), constant, and cosine_clamped, a cosine to 0 that is cut off at
    `lr_to` (Gupta et al. 2023): max(lr_from / 2 * (1 + cos(pi * share)), lr_to).
    """
    if shape == "constant":
        return np.full_like(share, lr_from)
    if shape == "exponential":
        return np.where(share == 1.0, lr_to, lr_from * _each(lambda part: (lr_to / lr_from) ** part, share))
    if shape == "cosine_clamped":
        return np.maximum(lr_from * (1.0 - _progress("cosine", share)), lr_to)
    progress = _progress(shape, share)
    return lr_from * (1.0 - progress) + lr_to * progress


def _progress(shape: str, share: Floats) -> Floats:
    """Return how much of the fall or rise is done, from 0 to 1."""
    if shape == "linear":
        return share
    if shape == "cosine":
        return 0.5 * (1.0 - _each(math.cos, np.pi * share))
    if shape == "1-sqrt":
        return np.sqrt(share)
    if shape == "inverse_sqrt":
        return (1.0 / np.sqrt(1.0 + SHARPNESS * share) - 1.0) / (1.0 / np.sqrt(1.0 + SHARPNESS) - 1.0)
    raise AssertionError(f"unknown shape {shape}")


def _each(function: Callable[[float], float], values: Floats) -> Floats:
    """Apply `function` to each element: numpy's own cos and power differ in the last bit with the length."""
    flat = [function(float(value)) for value in values.ravel()]
    return np.array(flat, dtype=np.float64).reshape(values.shape)


@dataclass(frozen=True)
class Curve:
    """A schedule in its phase: everything that the learning rate depends on."""

    schedule: Schedule
    tokens: int
    """The phase's budget: the horizon of the schedule."""
    incoming_lr: float = 0.0
    """The LR that the phase before, or the base, ended with."""
    horizon: int | None = None
    """The budget that the phase began with, if it was another: warm-up and cooldown are shares of it, so that
    a budget extended later does not move the part that is already trained."""

    def __call__(self, tokens: Any) -> Any:
        """Return the LR of the step that starts after `tokens` trained tokens of the phase.

        A number gives a float, an array a float64 array of its shape.
        """
        wanted = np.asarray(tokens, dtype=np.float64)
        if wanted.ndim == 0:
            return float(self.piece(float(wanted)).at(wanted))
        which = self._find(wanted)
        rates = np.empty_like(wanted)
        for number in np.unique(which):
            rates[which == number] = self.pieces[number].at(wanted[which == number])
        return rates

    def piece(self, tokens: float) -> CurvePiece:
        """Return the piece of the step that starts after `tokens` trained tokens."""
        return self.pieces[int(self._find(np.asarray(tokens)))]

    def _find(self, tokens: Floats) -> npt.NDArray[np.intp]:
        """Find the number of each token's piece; negative tokens belong to the first."""
        return np.maximum(np.searchsorted(self._starts, tokens, side="right") - 1, 0)

    @property
    def end(self) -> float:
        """The LR at the end of the phase."""
        return self(float(self.pieces[-1].stop))

    @property
    def peak(self) -> float:
        """The highest LR of the phase."""
        return max(max(piece.lr_from, piece.lr_to) for piece in self.pieces)

    def share_behind(self, tokens: float) -> float:
        """Return the share of the phase's sum of LRs that is behind after `tokens` trained tokens."""
        end = float(self.pieces[-1].stop)
        middles = (np.arange(_CELLS) + 0.5) / _CELLS
        behind, whole = (float(self(middles * until).mean()) * until for until in (min(tokens, end), end))
        return min(1.0, behind / whole)

    @property
    def warmup_tokens(self) -> float:
        """Tokens of the phase's first warm-up; 0 if it has none."""
        return float(self.pieces[0].stop) if self.pieces[0].name == "warmup" else 0.0

    @cached_property
    def _starts(self) -> Floats:
        return np.array([float(piece.start) for piece in self.pieces])

    @cached_property
    def pieces(self) -> tuple[CurvePiece, ...]:
        """The stretches of the curve, in order; none is empty."""
        pieces: list[CurvePiece] = []
        room = Fraction(self.tokens, self.schedule.cycles)
        incoming_lr = self.incoming_lr
        for cycle in range(self.schedule.cycles):
            laid = list(self._cycle(cycle * room, room, incoming_lr))
            pieces += laid
            incoming_lr = laid[-1].lr_to
        return tuple(self._annealed(pieces))

    def _annealed(self, pieces: list[CurvePiece]) -> list[CurvePiece]:
        """Cut the pieces at the anneal and append it, from the LR that the curve has there."""
        anneal = self.schedule.anneal
        if anneal is None:
            return pieces
        leave = Fraction(anneal.from_tokens)
        there = replace(self, schedule=self.schedule.model_copy(update={"anneal": None}))(anneal.from_tokens)
        final = CurvePiece("anneal", anneal.shape, leave, leave + anneal.tokens, there, anneal.end_lr)
        return [*(piece for piece in pieces if piece.start < leave), final]

    def _cycle(self, start: Fraction, room: Fraction, incoming_lr: float) -> Iterator[CurvePiece]:
        """Yield the warm-up and the body of one cycle, without empty pieces."""
        schedule = self.schedule
        begun_with = room if self.horizon is None or schedule.cycles > 1 else Fraction(self.horizon)
        warm = start + schedule.warmup.of(begun_with)
        body = [
            piece for piece in self._body(start, warm, start + room, begun_with) if piece.start < piece.stop
        ]
        if warm > start:
            foot = incoming_lr if schedule.start_lr == "reached" else schedule.start_lr
            top = float(body[0].at(np.asarray(float(warm)))) if body else schedule.max_lr
            yield CurvePiece("warmup", "linear", start, warm, foot, top)
        yield from body

    def _body(
        self, start: Fraction, warm: Fraction, stop: Fraction, begun_with: Fraction
    ) -> Iterator[CurvePiece]:
        """Yield what follows a warm-up that ends at `warm`, in a cycle from `start` to `stop`."""
        schedule, room = self.schedule, stop - start
        top, low = schedule.max_lr, schedule.min_lr or 0.0
        if schedule.kind == "constant":
            yield CurvePiece("constant", "constant", warm, stop, top, top)
        elif schedule.kind == "wsd":
            assert schedule.decay is not None
            assert schedule.decay_shape is not None
            fall = stop - schedule.decay.of(room)
            yield CurvePiece("stable", "constant", warm, fall, top, top)
            yield CurvePiece("decay", schedule.decay_shape, fall, stop, top, low)
        elif schedule.kind == "infinite":
            level = schedule.constant_lr
            assert schedule.cooldown is not None
            assert schedule.cooldown_shape is not None
            assert schedule.constant is not None
            assert level is not None
            cooled = warm + schedule.cooldown.of(begun_with)
            leave = start + sum(
                part.of(room) for part in (schedule.warmup, schedule.cooldown, schedule.constant)
            )
            yield CurvePiece("cooldown", schedule.cooldown_shape, warm, cooled, top, level)
            yield CurvePiece("constant", "constant", cooled, leave, level, level)
            yield CurvePiece("anneal", "exponential", leave, stop, level, low)
        elif schedule.kind == "stages":
            rate = top
            for number, stage in enumerate(schedule.stages or ()):
                until = warm + stage.length.of(room)
                last = rate if stage.end_lr is None else stage.end_lr.lr(top)
                yield CurvePiece(f"stages.{number}", stage.shape, warm, until, rate, last)
                warm, rate = until, last
        elif schedule.kind == "cosine_clamped":
            yield CurvePiece("cosine", "cosine_clamped", warm, stop, top, low, origin=start)
        else:
            yield CurvePiece(schedule.kind, schedule.kind, warm, stop, top, low)
