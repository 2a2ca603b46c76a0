"""The schedule section of a recipe: its fields, their defaults, and which values fit together."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from tokenization.errors import did_you_mean
from trainer.recipe.fields import Count, LengthField, Positive, Rate, Section
from trainer.recipe.numbers import Length, Level, exact, real

GROUPS = ("embeddings", "new_rows")
"""Parameter groups whose LR may be scaled."""


class Stage(Section):
    """One shape of a `stages` schedule."""

    shape: Literal["linear", "cosine", "inverse_sqrt", "exponential", "1-sqrt", "constant"]
    """How the LR goes from that of the stage before to `end_lr`."""
    length: LengthField
    """Of the stage."""
    end_lr: Annotated[Level, BeforeValidator(Level.read), PlainSerializer(str)] | None = None
    """The LR that the stage ends with, absolute or in per cent of max_lr; a `constant` stage has none."""

    @model_validator(mode="after")
    def _ending(self) -> Stage:
        if self.shape == "constant" and self.end_lr is not None:
            raise ValueError("end_lr has no effect on a constant stage; remove it")
        if self.shape != "constant" and self.end_lr is None:
            raise ValueError(f"a {self.shape} stage needs an end_lr")
        if self.shape == "exponential" and self.end_lr is not None and self.end_lr.amount == 0:
            raise ValueError("an exponential stage never reaches end_lr 0; give an end_lr above 0")
        return self


class Anneal(Section):
    """A final decay, from the LR that the curve has at `from_tokens`; the phase ends with it."""

    from_tokens: Count
    """Tokens into the phase."""
    tokens: Positive
    """Length; the phase then ends at from_tokens + tokens."""
    end_lr: Rate
    """The LR that it ends with."""
    shape: Literal["linear", "cosine", "exponential", "1-sqrt"] = "linear"
    """How the LR falls."""

    @model_validator(mode="after")
    def _ending(self) -> Anneal:
        if self.shape == "exponential" and self.end_lr == 0:
            raise ValueError("an exponential anneal never reaches end_lr 0; give an end_lr above 0")
        return self


_EFFECTIVE: dict[str, frozenset[str]] = {
    "cosine": frozenset({"min_lr"}),
    "cosine_clamped": frozenset({"min_lr"}),
    "linear": frozenset({"min_lr"}),
    "inverse_sqrt": frozenset({"min_lr"}),
    "constant": frozenset(),
    "wsd": frozenset({"min_lr", "decay", "decay_shape"}),
    "infinite": frozenset({"min_lr", "cooldown", "cooldown_shape", "constant", "constant_lr"}),
    "stages": frozenset({"stages"}),
}
"""Fields that a kind reads, beyond those that every kind reads."""


class Schedule(Section):
    """The learning rate as a function of the tokens trained in this phase.

    Defaults that depend on other fields are filled in when it is read, so that the resolved recipe
    and a checkpoint hold every value that counts.
    """

    kind: Literal[
        "cosine", "cosine_clamped", "linear", "inverse_sqrt", "constant", "wsd", "infinite", "stages"
    ]
    """The curve after the warm-up: `cosine` of Ibrahim et al. 2024, `cosine_clamped` of Gupta 2023."""
    max_lr: Annotated[Rate, Field(gt=0)]
    """The LR at the end of the warm-up."""
    min_lr: Rate | None = None
    """Default: a tenth of max_lr (Ibrahim et al. 2024)."""
    start_lr: Rate | Literal["reached"] = 0.0
    """Where the warm-up begins; `reached` is the LR that the phase before (or the base) ended with.

    A phase or cycle of a single step begins at max_lr instead of 0, at which nothing would be trained."""
    warmup: LengthField = Length(Fraction(1, 100), True)
    """Default 1 % of the phase (Ibrahim et al. 2024)."""
    cooldown: LengthField | None = None
    """infinite: length of the fall from max_lr to constant_lr; default 60 %."""
    cooldown_shape: Literal["cosine", "inverse_sqrt"] | None = None
    """infinite: default cosine."""
    constant: LengthField | None = None
    """infinite: length at constant_lr; default 25 %. The rest anneals to min_lr."""
    constant_lr: Rate | None = None
    """infinite: default 0.55 max_lr (Ibrahim et al. 2024: 1.65e-4 of 3e-4)."""
    decay: LengthField | None = None
    """wsd: length of the final decay; default 10 %."""
    decay_shape: Literal["linear", "1-sqrt", "exponential"] | None = None
    """wsd: default 1-sqrt."""
    stages: tuple[Stage, ...] | None = None
    """stages: the shapes that follow the warm-up; together they fill the phase."""
    cycles: Positive = 1
    """Repeats of the whole curve, warm-up included, within the phase; lengths are then per cycle."""
    anneal: Anneal | None = None
    """Leave the curve at any token, and decay to the end of the phase."""
    lr_scale: dict[str, Annotated[Rate, Field(gt=0)]] = Field(default_factory=dict)
    """Factor on the LR of a parameter group: `embeddings`, `new_rows` (default: as the embeddings)."""

    @field_validator("start_lr", mode="before")
    @classmethod
    def _start(cls, written: Any) -> Any:
        return written if written == "reached" else real(written)

    @model_validator(mode="after")
    def _fit_together(self) -> Schedule:
        problems = [*self._without_effect(), *self._missing()]
        self._resolve()
        problems += self._misordered()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _without_effect(self) -> Iterator[str]:
        """Find fields that the kind does not read."""
        for field in sorted(frozenset().union(*_EFFECTIVE.values()) - _EFFECTIVE[self.kind]):
            if getattr(self, field) is not None:
                readers = " or ".join(kind for kind, fields in _EFFECTIVE.items() if field in fields)
                yield f"{field} has no effect on kind {self.kind}; remove it, or use kind {readers}"
        if self.start_lr != 0 and self.warmup.amount == 0:
            yield f"start_lr {self.start_lr} has no effect without a warm-up; add warmup or remove it"
        for group in self.lr_scale:
            if group not in GROUPS:
                fix = did_you_mean(group, GROUPS) or f"groups are {', '.join(GROUPS)}"
                yield f"lr_scale: {group!r} is not a parameter group; {fix}"

    def _missing(self) -> Iterator[str]:
        if self.kind == "stages" and not self.stages:
            yield "kind stages needs a list of stages, each with a shape, a length and an end_lr"

    def _resolve(self) -> None:
        """Fill in the defaults that depend on the kind and on max_lr."""
        share = exact(self.max_lr)
        defaults: dict[str, Any] = {
            "min_lr": float(share / 10),
            "cooldown": Length(Fraction(60, 100), True),
            "cooldown_shape": "cosine",
            "constant": Length(Fraction(25, 100), True),
            "constant_lr": float(share * 55 / 100),
            "decay": Length(Fraction(10, 100), True),
            "decay_shape": "1-sqrt",
        }
        for field in _EFFECTIVE[self.kind] & defaults.keys():
            if getattr(self, field) is None:
                self.__dict__[field] = defaults[field]  # the section is frozen: its validator alone may write

    def fit_to_steps(self, room: int, step: int) -> None:
        """Begin at max_lr where a cycle of `room` tokens is one step of `step` tokens, and would begin at 0.

        The recipe calls it, which knows the step. A step's LR is that of its start.
        """
        if room <= step and self.start_lr == 0.0 and self.warmup.amount > 0:
            self.__dict__["start_lr"] = self.max_lr

    def _misordered(self) -> Iterator[str]:
        """Find learning rates in the wrong order."""
        top, low = self.max_lr, self.min_lr
        if low is not None and low > top:
            yield f"min_lr {low} is above max_lr {top}"
        if isinstance(self.start_lr, float) and self.start_lr > top:
            yield f"start_lr {self.start_lr} is above max_lr {top}; a warm-up rises"
        if self.constant_lr is not None and not (low or 0.0) <= self.constant_lr <= top:
            yield f"constant_lr {self.constant_lr} is not between min_lr {low} and max_lr {top}"
        if low == 0 and (self.kind == "infinite" or self.decay_shape == "exponential"):
            yield f"kind {self.kind} falls exponentially and never reaches min_lr 0; give a min_lr above 0"
        if self.anneal is not None and self.anneal.end_lr > top:
            yield f"anneal.end_lr {self.anneal.end_lr} is above max_lr {top}"
        for number, stage in enumerate(self.stages or ()):
            if stage.end_lr is not None and stage.end_lr.lr(top) > top:
                yield f"stages.{number}.end_lr {stage.end_lr.lr(top)} is above max_lr {top}"

    def misfits(self, phase_tokens: int) -> Iterator[str]:
        """Find lengths that a phase of so many tokens cannot hold; one line each."""
        room = Fraction(phase_tokens, self.cycles)
        whose = "phase" if self.cycles == 1 else f"cycle (a phase of {phase_tokens} in {self.cycles} cycles)"
        parts: dict[str, Length | None] = {"warmup": self.warmup}
        if self.kind == "stages":
            parts |= {
                f"stages.{number}.length": stage.length for number, stage in enumerate(self.stages or ())
            }
        else:
            parts |= {field: getattr(self, field) for field in ("cooldown", "constant", "decay")}
        lengths = {field: length.of(room) for field, length in parts.items() if length is not None}
        total = sum(lengths.values())
        sum_written = " + ".join(f"{field} {_tokens(length)}" for field, length in lengths.items())
        if total > room:
            yield f"{sum_written} = {_tokens(total)} tokens do not fit into the {whose}'s {_tokens(room)}"
        elif self.kind == "stages" and total != room:
            yield (
                f"{sum_written} = {_tokens(total)} tokens do not add up to the {whose}'s {_tokens(room)}; "
                f"{_tokens(room - total)} are missing"
            )
        if self.anneal is not None and self.anneal.from_tokens > phase_tokens:
            yield (
                f"anneal.from_tokens {self.anneal.from_tokens} is beyond the phase's {phase_tokens} tokens, "
                "so the curve has no LR there"
            )


def _tokens(amount: Fraction | int) -> str:
    """Write a length for a message, without decimals if it is whole."""
    return str(amount) if amount == int(amount) else f"{float(amount):.1f}"
