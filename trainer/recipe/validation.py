"""The validation sets of a recipe: held-out text of the old distribution and of the new one, by name."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.recipe.fields import Exact, Positive, Section

Role = Literal["upstream", "downstream"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
"""Names of sets become parts of metric names, which TensorBoard and other services restrict."""


class ValidationSet(Section):
    """Held-out text with a name of its own."""

    path: str
    """Shard prefix of the held-out text."""
    role: Role
    """`upstream`: text of the base's distribution; `downstream`: text of the new one."""
    weight: Annotated[Exact, Field(gt=0)] = Fraction(1)
    """Its weight in the mean of its role, which is the role's score; relative to the role's other sets."""


class Probe(Section):
    """Prompts whose continuations are shown at each validation."""

    prompts: tuple[str, ...] = Field(min_length=1)
    """Beginnings of documents, in any language."""
    max_tokens: Positive = 32
    """Tokens that the model adds, each the most likely one."""


class Tasks(Section):
    """Tasks of lm-eval's harness that the model answers while it trains; needs the package `lm-eval`."""

    names: tuple[str, ...] = Field(min_length=1)
    """Names of tasks or groups, as `rewarm eval --tasks` takes them."""
    path: str | None = None
    """Folder of task files (YAML) of your own: only these are known then, and nothing is fetched."""
    every_tokens: Positive | None = None
    """Default: every 25 % of the run."""
    limit: Positive | None = None
    """Only the first so many examples of each task."""


class Validation(Section):
    """Held-out text of the old distribution and of the new one, and when the losses on it are measured."""

    every_tokens: Positive | None = None
    """Default: every 5 % of the run."""
    upstream: str | None = None
    """Shard prefix of held-out text of the base's distribution."""
    downstream: str | None = None
    """Shard prefix of held-out text of the new distribution."""
    audit: str | None = None
    """Shard prefix of upstream text that the forgetting budget never sees: its number is to be reported."""
    sets: dict[str, ValidationSet] = Field(default_factory=dict)
    """More sets, by name. Each has its scores under `upstream/NAME` or `downstream/NAME`; the weighted mean
    of a role's sets is that role's score, unless `upstream` or `downstream` names the text for it."""
    max_tokens: Positive | None = None
    """Evaluate only the first so many tokens of each set."""
    tasks: Tasks | None = None
    """Tasks that are answered before the first step, every so many tokens, and at the end of each phase."""

    @property
    def paths(self) -> dict[str, str]:
        """The shard prefix of every set, by its name in metrics: `upstream`, `downstream/zh-law`."""
        fields = {"upstream": self.upstream, "downstream": self.downstream, "audit": self.audit}
        named = {name: prefix for name, prefix in fields.items() if prefix is not None}
        return named | {f"{one.role}/{name}": one.path for name, one in self.sets.items()}

    def means(self) -> dict[Role, dict[str, Fraction]]:
        """The weights of the sets, by their names in metrics, for each role whose score is a mean."""
        found: dict[Role, dict[str, Fraction]] = {}
        for name, one in self.sets.items():
            if getattr(self, one.role) is None:
                found.setdefault(one.role, {})[f"{one.role}/{name}"] = one.weight
        return {
            role: {name: weight / sum(sets.values()) for name, weight in sets.items()}
            for role, sets in found.items()
        }

    @model_validator(mode="after")
    def _named_sets(self) -> Validation:
        problems = [
            f"sets: {name!r} is not a name for a set; write letters, digits, '.', '_' and '-'"
            for name in self.sets
            if not _NAME.fullmatch(name)
        ]
        problems += [
            f"sets.{name}: weight {one.weight} has no effect, since {one.role} names the text of that role's "
            f"score; remove it, or make {one.role} one of the sets"
            for name, one in self.sets.items()
            if getattr(self, one.role) is not None and one.weight != 1
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def field_of(name: str) -> str:
    """Return the recipe's field that names a set: `validation.upstream`, `validation.sets.zh-law`."""
    _, slash, own = name.partition("/")
    return f"validation.sets.{own}" if slash else f"validation.{name}"
