"""Every field of a recipe, for people (`docs/recipe.md`) and for editors (a JSON schema)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from trainer.recipe.fields import sections_below
from trainer.recipe.numbers import Length, Level
from trainer.recipe.schema import Recipe

SCHEMA_FILE = "recipe.schema.json"
"""Lies beside the shipped recipes, whose first line names it."""

_NUMBER: dict[str, Any] = {"type": ["number", "string"]}
"""A number as people write it: `1e-4`, `20e9`, `1%`, `1/1000`, `30m`."""


class _AsWritten(GenerateJsonSchema):
    """Describes what a recipe may hold before it is read: numbers are text, too."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return dict(_NUMBER)

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return dict(_NUMBER)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, with which editors complete and check it."""
    schema: dict[str, Any] = _plain(Recipe.model_json_schema(schema_generator=_AsWritten))
    parts = schema["$defs"]
    parts |= dict.fromkeys(("Length", "Level"), _NUMBER)
    parts["Segment"] |= {"additionalProperties": _NUMBER}  # names that are not fields are sources
    parts["Segment"]["properties"]["from"] = parts["Segment"]["properties"].pop("start")
    segments = parts["Phase"]["properties"]["mixture"]
    one = {"$ref": "#/$defs/Segment"}
    parts["Phase"]["properties"]["mixture"] = {
        "anyOf": [one, segments],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "rewarm recipe"}


def _plain(tree: Any) -> Any:
    """Leave out what editors do not need, and write defaults as a recipe does."""
    if isinstance(tree, list):
        return [_plain(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    kept = {name: one for name, one in tree.items() if name not in ("ge", "gt", "le", "lt", "format")}
    if isinstance(kept.get("title"), str):
        del kept["title"]
    if isinstance(default := kept.get("default"), Mapping) and "amount" in default:
        kept["default"] = str(Length(Fraction(default["amount"]), default["relative"]))
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return {name: _plain(one) for name, one in kept.items()}


def recipe_reference() -> str:
    """Return `docs/recipe.md`: a table of the fields of every section, from their own docstrings."""
    parts = [_HEAD]
    for path, section in sections_below(Recipe):
        about = " ".join((section.__doc__ or "").split())
        rows = [_row(name, field) for name, field in section.model_fields.items()]
        table = ["| field | value | default | |", "|---|---|---|---|", *rows]
        parts += [f"## {f'`{path}`' if path else 'The whole recipe'}", about, "\n".join(table)]
    return "\n\n".join(parts) + "\n"


_HEAD = """# The fields of a recipe

<!-- Written by `rewarm recipe reference`; edit the docstrings in trainer/recipe instead. -->

A recipe is one YAML file that says everything about a run. `rewarm recipe new` writes one, `rewarm recipe
schema` prints a JSON schema with which editors complete and check it, and `rewarm plan RECIPE` shows what it
will do. Any field can be set on the command line: `phases.0.schedule.max_lr=5e-5`. Numbers are read as people
write them: `1e-4`, `20e9`, `1%`, `1/1000`; lengths are tokens, or a share of the phase."""


def _row(name: str, field: FieldInfo) -> str:
    about = " ".join((field.description or "").split()).replace("|", "\\|")
    default = "required" if field.is_required() else _written(field.get_default(call_default_factory=True))
    return f"| `{name}` | {_kind(field.annotation)} | {default} | {about} |"


def _written(value: Any) -> str:
    """Write a default as a recipe does."""
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return ", ".join(f"`{name}: {_short(one)}`" for name, one in changed.items()) or "see below"
    if value is None or value in ({}, ()):
        return "–"
    return f"`{_short(value)}`"


def _short(value: Any) -> str:
    return re.sub(r"[.]0$", "", str(value).lower() if isinstance(value, bool) else str(value))


_KINDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    Fraction: "number",
    Length: "tokens or share",
    Level: "LR or share of max_lr",
    Any: "any",
}


def _kind(annotation: Any) -> str:
    """Write what a field may hold."""
    if annotation in _KINDS:
        return _KINDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_kind(one) for one in inner if one is not type(None))
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"NAME: {_kind(inner[1])}"
    if origin is not None:  # Annotated
        return _kind(inner[0])
    return "fields below"
