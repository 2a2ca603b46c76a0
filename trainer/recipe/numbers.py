"""Numbers as people write them: `1e-4`, `20e9`, `1%`, `1/1000`, read exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from fractions import Fraction

LARGEST = 10**18
"""No count is larger: sums of them are still 64-bit integers."""


_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][+-]?\d{1,4})?")


def exact(text: object) -> Fraction:
    """The rational that `text` writes: a decimal, a power of ten, `a/b` or a percentage.

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
    """A non-negative whole number, such as tokens or samples.

    Raises:
        ValueError: `text` is not a number, not whole, or negative.
    """
    number = exact(text)
    if number.denominator != 1 or number < 0:
        raise ValueError(f"{str(text)!r} is not a whole number of at least 0")
    if number > LARGEST:
        raise ValueError(f"{str(text)!r} is more than any count may be, {float(LARGEST):g}")
    return int(number)


def real(text: object) -> float:
    """A real number, such as a learning rate.

    Raises:
        ValueError: `text` is not a number, or beyond a float's range.
    """
    try:
        return float(exact(text))
    except OverflowError as error:
        raise ValueError(f"{str(text)!r} is too large") from error


def at_most(number: float) -> str:
    """A number for a message that advises it as an upper bound: three digits, rounded down."""
    return f"{float(Context(prec=3, rounding=ROUND_FLOOR).create_decimal(repr(number))):g}"


@dataclass(frozen=True)
class Length:
    """A stretch of a phase: so many tokens, or a share of the phase's tokens."""

    amount: Fraction
    relative: bool

    @classmethod
    def read(cls, text: object) -> Length:
        """`1%` and `1/100` are shares of the phase; `2e9` is tokens.

        Raises:
            ValueError: not a number, negative, a share above the whole, or a fraction of a token.
        """
        if isinstance(text, Length):
            return text
        amount = exact(text)
        written = str(text)
        relative = "%" in written or "/" in written
        if amount < 0 or (relative and amount > 1):
            raise ValueError(f"{written!r} is not between 0 and 100% of the phase")
        if not relative and amount.denominator != 1:
            raise ValueError(f"{written!r} is not a whole number of tokens; a share is written 1%")
        return cls(amount, relative)

    def of(self, phase_tokens: int | Fraction) -> Fraction:
        """The length in tokens (exact, not rounded) within a phase of `phase_tokens`."""
        return self.amount * phase_tokens if self.relative else self.amount

    def __str__(self) -> str:
        if not self.relative:
            return str(self.amount)
        percent = f"{float(self.amount * 100):g}%"
        return percent if exact(percent) == self.amount else f"{self.amount}"


@dataclass(frozen=True)
class Level:
    """A learning rate, absolute (`3e-5`) or as a share of max_lr (`10%`, `1/10`)."""

    amount: Fraction
    relative: bool

    @classmethod
    def read(cls, text: object) -> Level:
        """Reads what a recipe writes.

        Raises:
            ValueError: no number, or negative.
        """
        if isinstance(text, Level):
            return text
        amount = exact(text)
        if real(text) < 0:
            raise ValueError(f"{str(text)!r} is negative")
        return cls(amount, relative="%" in str(text) or "/" in str(text))

    def of(self, max_lr: float) -> float:
        """The learning rate, for a schedule with this max_lr."""
        return float(self.amount * exact(max_lr) if self.relative else self.amount)

    def __str__(self) -> str:
        return f"{self.amount.numerator}/{self.amount.denominator}" if self.relative else f"{self.of(0)!r}"
