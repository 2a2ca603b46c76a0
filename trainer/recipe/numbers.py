"""Exact numbers from text: `1e-4`, `20e9`, `1%`, `1/1000`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from fractions import Fraction
from typing import Any

LARGEST = 10**18
"""The largest count; sums of several still fit into 64 bits."""

_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][+-]?\d{1,4})?")


def exact(text: object) -> Fraction:
    """Read a rational number: a decimal, a power of ten, `a/b` or a percentage.

    A float is read by its shortest decimal form, so that 0.1 is one tenth.

    Raises:
        ValueError: `text` is not a finite number.
    """
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not a number")
    if isinstance(text, (int, Fraction)):
        return Fraction(text)
    written = (repr(text) if isinstance(text, float) else str(text)).strip()
    if written.endswith("%"):
        return exact(written[:-1]) / 100
    if written.count("/") == 1:
        above, _, below = written.partition("/")
        denominator = exact(below)
        if denominator == 0:
            raise ValueError(f"{written!r} divides by zero")
        return exact(above) / denominator
    if not _NUMBER.fullmatch(written):
        raise ValueError(f"{written!r} is not a number; write it like 1e-4, 20e9, 3/4 or 1%")
    return Fraction(written.replace("_", ""))


def count(text: object) -> int:
    """Read a whole number of at least 0, such as tokens or samples.

    Raises:
        ValueError: `text` is not a number, not whole, or negative.
    """
    number = exact(text)
    if number.denominator != 1 or number < 0:
        raise ValueError(f"{str(text)!r} is not a whole number of at least 0")
    if number > LARGEST:
        raise ValueError(f"{str(text)!r} is larger than the largest count, {float(LARGEST):g}")
    return int(number)


def real(text: object) -> float:
    """Read a real number, such as a learning rate.

    Raises:
        ValueError: `text` is not a number, or beyond a float's range.
    """
    try:
        return float(exact(text))
    except OverflowError as error:
        raise ValueError(f"{str(text)!r} is too large") from error


def as_written(value: Any) -> Any:
    """Convert a number that the recipe keeps as text: to `int` if it is written whole, else to `float`."""
    if isinstance(value, Mapping):
        return {name: as_written(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_written(inner) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        number: Fraction = exact(value)
    except ValueError:
        return value
    return int(number) if number.denominator == 1 and "." not in value else float(number)


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: object) -> float:
    """Read a time span in seconds: `90`, or with a unit, `90s`, `30m`, `2h`, `1d`.

    Raises:
        ValueError: `text` is not a number with one of these units, or not above 0.
    """
    written = str(text).strip()
    unit = _SECONDS.get(written[-1:], 1)
    found = real(written[:-1] if written[-1:] in _SECONDS else text) * unit
    if found <= 0:
        raise ValueError(f"{written!r} is not a time above 0; write it like 90s, 30m or 2h")
    return found


def at_most(number: float) -> str:
    """Write a number that a message advises as an upper bound: three digits, rounded down."""
    return f"{float(Context(prec=3, rounding=ROUND_FLOOR).create_decimal(repr(number))):g}"


@dataclass(frozen=True)
class Amount:
    """An absolute number, or a share of a whole."""

    amount: Fraction
    relative: bool

    def of(self, whole: int | Fraction) -> Fraction:
        """Return the number, exact and not rounded, for this whole."""
        return self.amount * whole if self.relative else self.amount


@dataclass(frozen=True)
class Length(Amount):
    """A number of tokens (`2e9`), or a share of the phase's tokens (`1%`, `1/100`)."""

    @classmethod
    def read(cls, text: object) -> Length:
        """Read what a recipe writes.

        Raises:
            ValueError: not a number, negative, a share above the whole, or a fraction of a token.
        """
        if isinstance(text, Length):
            return text
        amount, written = exact(text), str(text)
        relative = "%" in written or "/" in written
        if amount < 0 or (relative and amount > 1):
            raise ValueError(f"{written!r} is not between 0 and 100% of the phase")
        if not relative and amount.denominator != 1:
            raise ValueError(f"{written!r} is not a whole number of tokens; write a share as 1%")
        return cls(amount, relative)

    def __str__(self) -> str:
        percent = f"{float(self.amount * 100):g}%"
        return percent if self.relative and exact(percent) == self.amount else f"{self.amount}"


@dataclass(frozen=True)
class Level(Amount):
    """A learning rate (`3e-5`), or a share of max_lr (`10%`, `1/10`)."""

    @classmethod
    def read(cls, text: object) -> Level:
        """Read what a recipe writes.

        Raises:
            ValueError: not a number, or negative.
        """
        if isinstance(text, Level):
            return text
        if real(text) < 0:
            raise ValueError(f"{str(text)!r} is negative")
        return cls(exact(text), relative="%" in str(text) or "/" in str(text))

    def lr(self, max_lr: float) -> float:
        """Return the learning rate, for a schedule with this max_lr."""
        return float(self.of(exact(max_lr)))

    def __str__(self) -> str:
        return f"{self.amount.numerator}/{self.amount.denominator}" if self.relative else repr(self.lr(0))
