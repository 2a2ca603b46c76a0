"""The learning rate as a pure function of trained tokens.

A schedule is laid out as *pieces*: stretches of the phase, after each other and without gaps, each of one
shape between two learning rates. Everything that is asked of a schedule (its value, its joints, where its
decay begins) is read off the pieces.

The optimizer step that starts after `t` trained tokens of the phase uses `lr(t)`, 0 <= t < length. Tokens
beyond the end hold the last value. All arithmetic is float64; pieces meet exactly.
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


SHARPNESS = 10.0
"""Of the inverse square root: alpha in h(x) = 1/sqrt(1 + alpha x) - 1 (Ibrahim et al. 2024)."""


@dataclass(frozen=True)
class CurvePiece:
    """A stretch of the curve: from `first` at `origin` to `last` at `stop`, shown from `start` on."""

    name: str
    shape: str
    start: Fraction
    stop: Fraction
    lr_from: float
    lr_to: float
    origin: Fraction | None = None
    """Where the shape begins, if not at `start`."""

    def at(self, tokens: Floats) -> Floats:
        """The learning rate at tokens of the phase that lie in this piece (or after it: `last`)."""
        begin = float(self.start if self.origin is None else self.origin)
        end = float(self.stop)  # rounded like `tokens` are, so that the share is exactly 1 there
        share = np.clip((tokens - begin) / (end - begin), 0.0, 1.0)
        return interpolate(self.shape, self.lr_from, self.lr_to, share)


def interpolate(shape: str, first: float, last: float, share: Floats) -> Floats:
    """From `first` at share 0 to `last` at share 1, both exactly.

    linear, cosine (Ibrahim et al. 2024, eq. 2), inverse_sqrt (same, infinite schedules), 1-sqrt and
    exponential (WSD, arXiv 2404.06395), constant, and cosine_clamped, a cosine to 0 that is cut off at
    `last` (Gupta et al. 2023): max(first / 2 * (1 + cos(pi * share)), last).
    """
    if shape == "constant":
        return np.full_like(share, first)
    if shape == "exponential":
        return np.where(share == 1.0, last, first * _each(lambda part: (last / first) ** part, share))
    if shape == "cosine_clamped":
        return np.maximum(first * (1.0 - _progress("cosine", share)), last)
    gone = _progress(shape, share)
    return first * (1.0 - gone) + last * gone


def _progress(shape: str, share: Floats) -> Floats:
    """How much of the fall or rise is done, from 0 to 1."""
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
    """Element by element: numpy's own cos and power differ in the last bit with the array's length."""
    flat = [function(float(value)) for value in values.ravel()]
    return np.array(flat, dtype=np.float64).reshape(values.shape)


@dataclass(frozen=True)
class Curve:
    """A schedule within its phase: everything that its learning rate depends on."""

    schedule: Schedule
    tokens: int
    """The phase's budget: the horizon of the schedule."""
    incoming_lr: float = 0.0
    """The LR that the phase before, or the base, ended with."""
    horizon: int | None = None
    """The budget that warm-up and cooldown take their shares of, where it is not `tokens`: the one that the
    phase began with, so that a budget extended later does not move the part that is already trained."""

    def __call__(self, tokens: Any) -> Any:
        """The LR of the step that starts after `tokens` trained tokens of the phase.

        Takes a number and gives a float, or an array and gives a float64 array of its shape.
        """
        asked = np.asarray(tokens, dtype=np.float64)
        if asked.ndim == 0:
            return float(self.piece(float(asked)).at(asked))
        which = self._find(asked)
        rates = np.empty_like(asked)
        for number in np.unique(which):
            rates[which == number] = self.pieces[number].at(asked[which == number])
        return rates

    def piece(self, tokens: float) -> CurvePiece:
        """The piece that the step after `tokens` trained tokens lies in."""
        return self.pieces[int(self._find(np.asarray(tokens)))]

    def _find(self, tokens: Floats) -> npt.NDArray[np.intp]:
        """The number of the piece that each token lies in; negative tokens belong to the first."""
        return np.maximum(np.searchsorted(self._starts, tokens, side="right") - 1, 0)

    @property
    def end(self) -> float:
        """The LR at the end of the phase."""
        return self(float(self.pieces[-1].stop))

    @property
    def peak(self) -> float:
        """The highest LR of the phase."""
        return max(max(piece.lr_from, piece.lr_to) for piece in self.pieces)

    @cached_property
    def _starts(self) -> Floats:
        return np.array([float(piece.start) for piece in self.pieces])

    @cached_property
    def pieces(self) -> tuple[CurvePiece, ...]:
        """The stretches of the curve, in order; none is empty."""
        pieces: list[CurvePiece] = []
        room = Fraction(self.tokens, self.schedule.cycles)
        reached = self.incoming_lr
        for cycle in range(self.schedule.cycles):
            laid = list(self._cycle(cycle * room, room, reached))
            pieces += laid
            reached = laid[-1].lr_to
        return tuple(self._annealed(pieces))

    def _annealed(self, pieces: list[CurvePiece]) -> list[CurvePiece]:
        """The pieces up to the anneal, and then the anneal, from the LR that it finds."""
        anneal = self.schedule.anneal
        if anneal is None:
            return pieces
        leave = Fraction(anneal.from_tokens)
        there = replace(self, schedule=self.schedule.model_copy(update={"anneal": None}))(anneal.from_tokens)
        final = CurvePiece("anneal", anneal.shape, leave, leave + anneal.tokens, there, anneal.end_lr)
        return [*(piece for piece in pieces if piece.start < leave), final]

    def _cycle(self, start: Fraction, room: Fraction, reached: float) -> Iterator[CurvePiece]:
        """The warm-up and the body of one cycle, empty pieces left out."""
        schedule = self.schedule
        begun_with = room if self.horizon is None or schedule.cycles > 1 else Fraction(self.horizon)
        warm = start + schedule.warmup.of(begun_with)
        body = [
            piece for piece in self._body(start, warm, start + room, begun_with) if piece.start < piece.stop
        ]
        if warm > start:
            foot = reached if schedule.start_lr == "reached" else schedule.start_lr
            top = float(body[0].at(np.asarray(float(warm)))) if body else schedule.max_lr
            yield CurvePiece("warmup", "linear", start, warm, foot, top)
        yield from body

    def _body(
        self, start: Fraction, warm: Fraction, stop: Fraction, begun_with: Fraction
    ) -> Iterator[CurvePiece]:
        """What follows a warm-up that ends at `warm`, in a cycle from `start` to `stop`."""
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
                last = rate if stage.end_lr is None else stage.end_lr.of(top)
                yield CurvePiece(f"stages.{number}", stage.shape, warm, until, rate, last)
                warm, rate = until, last
        elif schedule.kind == "cosine_clamped":
            yield CurvePiece("cosine", "cosine_clamped", warm, stop, top, low, origin=start)
        else:
            yield CurvePiece(schedule.kind, schedule.kind, warm, stop, top, low)
