"""An arm of a study: which fields of the recipe it changes, and where it starts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any, Literal

from tokenization.errors import UserError
from trainer.recipe.schema import Phase, Recipe
from trainer.recipe.yaml_text import read_yaml

StartModel = Literal["random_weights", "subpiece_mean", "mean", "random", "unextended"]
"""A model that an arm starts from: random weights in the base's shape; the base without the extension of its
vocabulary, extended in one of three manners, or as it is."""

SCALES = {"tiny": Fraction(1, 4), "small": Fraction(1, 2), "medium": Fraction(1), "large": Fraction(2)}
"""Of `--sizes` where the recipe has `model.init`: width, layers and heads are multiplied."""

AVERAGED = "average.continued"
"""In the fields of an arm that is an average of a base and its continuation: its share of the latter."""

Change = dict[str, Any]
"""Fields of a phase, and what they become."""


@dataclass(frozen=True)
class ArmSpec:
    """One arm of a study: the recipe with these fields."""

    name: str
    fields: dict[str, Any]
    """By their dotted names."""
    phase: int
    """The first phase that is studied; those before it are the same in all arms of a seed."""
    model: StartModel | None = None
    """The model that the arm starts from, if not the recipe's; it is made or read before arms are planned."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Each is `field=value` without a blank, so that a line of a file holds them all."""
        return tuple(f"{field}={flow(value)}" for field, value in self.fields.items())


@dataclass(frozen=True)
class Options:
    """What a user asks of a study beyond its name."""

    vary: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Fields and their values, as written, of `grid` and `branch`."""
    branched: tuple[int, int] | None = None
    """Of `branch`: the phase that is cut, and after how many of its tokens."""
    own_text: str = ""
    """Of `self_replay`: the prefix of the shards that the base writes."""


NOTHING = Options()
"""Beyond the name of a study nothing is asked."""


def flow(value: Any) -> str:
    """Return YAML on one line without blanks."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def last_phase(recipe: Recipe, name: str, change: Change) -> ArmSpec:
    """Return an arm that changes fields of the last phase."""
    last = len(recipe.phases) - 1
    return ArmSpec(name, {f"phases.{last}.{field}": value for field, value in change.items()}, last)


def phase_fields(phase: Phase) -> Change:
    """Return a phase as a recipe writes it: a single mixture is a mapping, whose fields can be set."""
    tree = phase.model_dump(mode="json", exclude_none=True)
    first, *later = tree["mixture"]
    return tree if later else {**tree, "mixture": {**first.pop("weights"), **first}}


def curve_of(phase: Phase, **fields: Any) -> Change:
    """Return a schedule of other fields between the same learning rates."""
    schedule = phase.schedule
    kept = {"max_lr": schedule.max_lr, "warmup": str(schedule.warmup), "lr_scale": schedule.lr_scale}
    return {name: value for name, value in {**kept, **fields}.items() if value not in (None, {})}


def lowest_lr(phase: Phase) -> float:
    """Return the last learning rate."""
    low = phase.schedule.min_lr
    return low if low else phase.schedule.max_lr / 10


def read_vary(word: str) -> tuple[str, tuple[str, ...]]:
    """Read `field=value,value`; a comma within brackets belongs to its value.

    Raises:
        UserError: it is written otherwise, or names fewer than two values.
    """
    field, _, written = word.partition("=")
    values = tuple(value for value in re.split(r",(?![^\[{(]*[\]})])", written) if value)
    if not field or len(set(values)) < 2:
        fix = "write a field and at least two values: phases.0.schedule.max_lr=1e-4,3e-4"
        raise UserError("is not FIELD=VALUE,VALUE", field="--vary", value=word, fix=fix)
    return field, values


def combinations(vary: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each combination of values with a name that tells it from the others."""
    if not vary:
        return
    ends = [field.rpartition(".")[2] for field, _ in vary]
    if len(set(ends)) < len(ends):
        ends = [field.replace(".", "-") for field, _ in vary]
    for values in product(*(values for _, values in vary)):
        shown = (re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-") for value in values)
        name = "-".join(f"{end}-{value}" for end, value in zip(ends, shown, strict=True))
        yield name, {field: read_yaml(value) for (field, _), value in zip(vary, values, strict=True)}
