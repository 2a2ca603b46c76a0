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
from trainer.recipe.fields import sections_below, sections_in
from trainer.recipe.schema import Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `field=value` overrides.

    Raises:
        UserError: the file cannot be read; or `UserErrors`, all that is wrong with it at once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        first = " before the field=value" if "=" in str(path) else ""
        fix = f"give the path of a recipe{first}"
        raise UserError(f"cannot be read ({reason})", file=path, fix=fix) from error
    return parse_recipe(text, overrides, file=path)


def parse_recipe(text: str, overrides: Sequence[str] = (), file: object = "recipe") -> Recipe:
    """Read a recipe like `load_recipe`, from its text."""
    try:
        tree = yaml_text.read_yaml(text)
        for override in overrides:
            yaml_text.apply_override(tree, override)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"is not YAML ({' '.join(str(error).split())})", file=file) from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if not isinstance(tree, dict):
        raise UserError("is empty or not a mapping of fields", file=file, fix="see launch/recipes/")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserErrors(_problems(error, file)) from error


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML that `parse_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_UNION_MEMBER = re.compile(r"[\[(]|^(dict|str|float|int|literal)")
"""Names of union members, which pydantic puts into an error's path although they are not fields of ours."""

_WORDING = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "extra_forbidden": "is not a known field",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "missing": "is required and missing",
    "model_type": "must be a mapping of fields",
    "string_type": "must be text",
    "too_short": "must have at least {min_length} item",
    "tuple_type": "must be a list",
}
"""What pydantic's errors say here, by their type. Checks of our own bring their own words."""


_MOST_HOMES = 2
"""A field that more sections than these have may be meant for any of them."""


def _problems(error: ValidationError, file: object) -> list[UserError]:
    """Convert pydantic's findings to errors of ours: field, value, what, fix; one line each."""
    found: dict[tuple[str, int], UserError] = {}
    said: dict[str, str] = {}
    for item in error.errors():
        path = [str(part) for part in item["loc"] if not _UNION_MEMBER.search(str(part))]
        if item["type"] == "extra_forbidden" and path[-1:] != [str(item["loc"][-1])]:
            path.append(str(item["loc"][-1]))  # a user's word that looks like a member of a union
        field, kind, value = ".".join(path), item["type"], item["input"]
        if kind == "too_short" and value:
            continue  # it is not empty: its items are wrong, and have errors of their own
        what = item["msg"].removeprefix("Value error, ")
        if kind in _WORDING:
            what = _WORDING[kind].format(**item.get("ctx", {}))
        if kind == "model_type" and value is None:
            what = "is empty; leave it out, or write its fields"
        if what.startswith("must be ") and said.get(field, "").startswith("must be "):  # of a union
            what = f"{said[field]} or {what.removeprefix('must be ')}"
        said[field] = what
        known = _meant(path) if kind == "extra_forbidden" else None
        hidden = kind in ("extra_forbidden", "missing") or isinstance(value, (dict, list, BaseModel))
        for number, line in enumerate(what.split("\n")):
            shown = None if hidden or repr(value) in line else value
            found[field, number] = UserError(line, file=file, field=field or None, value=shown, fix=known)
    return list(found.values())


def _meant(path: list[str]) -> str | None:
    """Say which field of its section is like the last word of `path`, or of which section it is a field."""
    word, near = path[-1], _fields_at(path[:-1])
    homes = [name or "the top level" for name, one in sections_below(Recipe) if word in one.model_fields]
    if 1 <= len(homes) <= _MOST_HOMES:
        return did_you_mean(word, near, cutoff=0.8) or f"it belongs into {' or '.join(homes)}"
    return did_you_mean(word, near)


def _fields_at(path: list[str]) -> list[str]:
    """Return the names of the fields of the section at `path`, to suggest from."""
    section: Any = Recipe
    for step in path:
        if step.isdigit():
            continue
        annotation = (
            section.model_fields[step].annotation if step in getattr(section, "model_fields", {}) else section
        )
        section = next((one for one, _ in sections_in(annotation)), section)
    return list(section.model_fields)
