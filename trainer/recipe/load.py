"""Read a recipe: YAML text and overrides become a checked `Recipe`, and all errors are reported at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tokenization.errors import UserError, UserErrors, did_you_mean
from trainer.recipe import yaml_text
from trainer.recipe.fields import Section
from trainer.recipe.schema import Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `field=value` overrides.

    Raises:
        UserError: the file cannot be read; or `Problems`, all that is wrong with it at once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", file=path, fix="give the path of a recipe") from error
    return parse_recipe(text, overrides, file=path)


def parse_recipe(text: str, overrides: Sequence[str] = (), file: object = "recipe") -> Recipe:
    """Like `load`, from the recipe's text."""
    try:
        tree = yaml_text.read_yaml(text)
        for override in overrides:
            yaml_text.apply_override(tree, override)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"is not YAML ({' '.join(str(error).split())})", file=file) from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if not isinstance(tree, dict):
        raise UserError("is empty or no mapping of fields", file=file, fix="see launch/recipes/")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserErrors(_problems(error, file)) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `parse` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_UNION_MEMBER = re.compile(r"[\[(]|^(dict|str|float|int|literal)")
"""Names that pydantic puts into an error's path for the members of a union: no field of ours."""


def _problems(error: ValidationError, file: object) -> list[UserError]:
    """pydantic's findings in the house's form: field, value, what, fix; one line each."""
    found: dict[str, UserError] = {}
    for item in error.errors():
        path = [str(part) for part in item["loc"] if not _UNION_MEMBER.search(str(part))]
        field = ".".join(path)
        kind, value = item["type"], item["input"]
        if kind == "too_short" and value:
            continue  # not empty: its items are wrong, and are told themselves
        if kind == "extra_forbidden":
            fix = did_you_mean(path[-1], _fields_at(path[:-1]))
            problem = UserError("is not a known field", file=file, field=field, fix=fix)
        elif kind == "missing":
            problem = UserError("is required and missing", file=file, field=field)
        else:
            lines = item["msg"].removeprefix("Value error, ").split("\n")
            shown = None if isinstance(value, (dict, list, BaseModel)) or repr(value) in lines[0] else value
            for number, line in enumerate(lines):
                found[f"{field}#{number}"] = UserError(line, file=file, field=field or None, value=shown)
            continue
        found[field] = problem
    return list(found.values())


def _fields_at(path: list[str]) -> list[str]:
    """Names of the fields of the section at `path`, to suggest from."""
    section: Any = Recipe
    for step in path:
        if step.isdigit():
            continue
        annotation = (
            section.model_fields[step].annotation if step in getattr(section, "model_fields", {}) else section
        )
        section = _section_in(annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[Section] | None:
    """The first Section class within a type annotation such as `dict[str, Source]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if found := _section_in(inner):
            return found
    return None
