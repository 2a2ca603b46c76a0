"""The kinds of value that a recipe's fields hold, and the strict section that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from trainer.recipe.numbers import Length, count, exact, real, seconds

Count = Annotated[int, BeforeValidator(count)]
"""A whole number of at least 0."""

Positive = Annotated[int, BeforeValidator(count), Field(ge=1)]
"""A whole number of at least 1."""

Rate = Annotated[float, BeforeValidator(real), Field(ge=0)]
"""A learning rate or another non-negative real number."""

Exact = Annotated[Fraction, BeforeValidator(exact), PlainSerializer(str), Field(ge=0)]
"""An exact non-negative rational."""

Seconds = Annotated[float, BeforeValidator(seconds)]
"""A time span above 0, in seconds; written with a unit if the user likes, such as `30m`."""

LengthField = Annotated[Length, BeforeValidator(Length.read), PlainSerializer(str)]
"""A number of tokens, or a share of the phase."""


class Section(BaseModel):
    """A part of the recipe: immutable, and strict about unknown fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def sections_below(section: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield a section and those within it, each with its path: `[]` for items of a list, `NAME` for names."""
    yield path, section
    for name, field in section.model_fields.items():
        for inner, suffix in sections_in(field.annotation):
            yield from sections_below(inner, f"{path}.{name}{suffix}".lstrip("."))


def sections_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[Section], str]]:
    """Yield the sections that a field may hold, with what their paths add to its own."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, suffix
        return
    origin = get_origin(annotation)
    more = "[]" if origin is tuple else ".NAME" if origin is dict else ""
    for inner in get_args(annotation):
        yield from sections_in(inner, suffix + more)
