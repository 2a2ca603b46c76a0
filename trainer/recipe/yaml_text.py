"""Read YAML without guessing types, and apply `field=value` overrides to it."""

from __future__ import annotations

from typing import Any

import yaml

from tokenization.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML whose numbers stay text: PyYAML reads 1e-4 as a string, and 0.1 inexactly."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the base class declares it so)
        first: [(tag, form) for tag, form in resolvers if not tag.endswith((":float", ":int", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    yaml_constructors = yaml.SafeLoader.yaml_constructors | dict.fromkeys(
        (f"tag:yaml.org,2002:{kind}" for kind in ("float", "int", "timestamp")),
        yaml.SafeLoader.construct_yaml_str,
    )

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check the fields as they are written, before `<<` merges in those of another mapping."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            where = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                what, fix = "has a list or mapping as a field name", "field names must be plain strings"
                raise UserError(what, field=where, fix=fix)
            if key.value in seen:
                raise UserError("appears twice", field=where, value=key.value, fix="keep one of the two")
            seen.add(key.value)
        return node


def read_yaml(text: str) -> Any:
    """Read YAML into a tree whose numbers are text.

    Raises:
        YAMLError: `text` is not YAML.
        UserError: a field name appears twice, or is not a plain string; or aliases make a tree that holds
            itself, or far more values than anyone writes.
    """
    tree = yaml.load(text, Loader=_Loader)
    if _size(tree, {}) > _MOST_VALUES:
        what = f"grows to more than {_MOST_VALUES:,} values by its aliases"
        raise UserError(what, fix="write out what *NAME stands for")
    return tree


_MOST_VALUES = 100_000


def _size(tree: Any, known: dict[int, int | None]) -> int:
    """Count the values of a tree with its aliases written out; `known` has the counts of what was visited."""
    if isinstance(tree, str) and "\0" in tree:
        raise UserError("holds the character NUL, which no path or name has", value=tree, fix="remove it")
    if not isinstance(tree, (dict, list)):
        return 1
    if id(tree) not in known:
        known[id(tree)] = None
        inner = tree.values() if isinstance(tree, dict) else tree
        known[id(tree)] = 1 + sum(_size(one, known) for one in inner)
    count = known[id(tree)]
    if count is None:
        raise UserError("holds itself by an alias", fix="write out what *NAME stands for")
    return count


def apply_override(tree: Any, word: str) -> None:
    """Set `a.1.b=value` in a recipe that was read.

    Raises:
        UserError: there is no such field, or no value.
    """
    dotted, equals, value = word.partition("=")
    if not equals or not dotted:
        raise UserError(
            "is not field=value",
            value=word,
            fix="write it without spaces, such as phases.0.schedule.max_lr=5e-5",
        )
    try:
        parsed = read_yaml(value)
    except (yaml.YAMLError, UserError) as error:
        what = f"is not a YAML value ({' '.join(str(error).split())})"
        raise UserError(what, field=dotted, value=value, fix="quote it") from error
    *parents, last = dotted.split(".")
    for step in parents:
        tree = _child(tree, step, dotted)
    if isinstance(tree, list):
        tree[_place(tree, last, dotted)] = parsed
    elif isinstance(tree, dict):
        tree[last] = parsed
    else:
        raise UserError("has no fields", field=dotted)


def _child(tree: Any, step: str, dotted: str) -> Any:
    """Go one step down."""
    if isinstance(tree, dict):
        return tree.setdefault(step, {})
    if isinstance(tree, list):
        return tree[_place(tree, step, dotted)]
    raise UserError("has no fields", field=dotted, value=step)


def _place(items: list[Any], step: str, dotted: str) -> int:
    """Find an item of a list by its number or, as phases may be, by its name."""
    names = [str(item.get("name", "")) if isinstance(item, dict) else "" for item in items]
    if step in names:
        return names.index(step)
    if step.isdecimal() and int(step) < len(items):
        return int(step)
    raise UserError("is not an item of the list", field=dotted, value=step, fix=f"use 0 to {len(items) - 1}")
