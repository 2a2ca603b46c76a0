"""The reference and the schema are written from the fields, and what ships is what they say today."""

import json

import pytest
import yaml

from tests.helpers import runs
from trainer.cli.main import main
from trainer.recipe.fields import Section
from trainer.recipe.reference import SCHEMA_FILE, recipe_reference, recipe_schema

RECIPES = runs.ROOT / "launch" / "recipes"


def subclasses(section):
    for one in section.__subclasses__():
        yield one
        yield from subclasses(one)


def test_every_field_says_what_it_is():
    silent = [
        f"{section.__name__}.{name}"
        for section in subclasses(Section)
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_the_reference_in_docs_is_current():
    """After a change of a field: `rewarm recipe reference > docs/recipe.md`."""
    assert (runs.ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == recipe_reference()


def test_the_schema_beside_the_recipes_is_current(capsys):
    """After a change of a field: `rewarm recipe schema > launch/recipes/recipe.schema.json`."""
    assert main(["recipe", "schema"]) == 0
    assert (RECIPES / SCHEMA_FILE).read_text(encoding="utf-8") == capsys.readouterr().out


def test_the_reference_names_every_field_with_its_default():
    text = recipe_reference()
    for section in subclasses(Section):
        for name in section.model_fields:
            assert f"| `{name}` |" in text
    assert "| `warmup` | tokens or share | `1%` |" in text
    assert "| `grad_norm_spike` | fields below | `threshold: 16` |" in text
    assert "## `validation.sets.NAME`" in text


def complaints(schema, node, value, path=""):
    """What a validator of JSON schemas would find, for the keywords that the schema uses."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    if "anyOf" in node:
        found = [complaints(schema, one, value, path) for one in node["anyOf"]]
        return min(found, key=len)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float)}
    wanted = node.get("type", [])
    types = [wanted] if isinstance(wanted, str) else wanted
    if types and not any(
        value is None if kind == "null" else isinstance(value, kinds[kind]) for kind in types
    ):
        return [f"{path}: {value!r} is not {types}"]
    if "enum" in node and value not in node["enum"]:
        return [f"{path}: {value!r} is not in {node['enum']}"]
    if isinstance(value, list):
        return [
            line
            for place, one in enumerate(value)
            for line in complaints(schema, node["items"], one, f"{path}.{place}")
        ]
    if not isinstance(value, dict):
        return []
    known, rest = node.get("properties", {}), node.get("additionalProperties", True)
    lines = [f"{path}: {name} is missing" for name in node.get("required", ()) if name not in value]
    for name, one in value.items():
        inner = known.get(name, rest)
        if inner is False:
            lines.append(f"{path}: {name} is not known")
        elif inner is not True:
            lines += complaints(schema, inner, one, f"{path}.{name}")
    return lines


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_recipes_name_the_schema_and_follow_it(path):
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    schema = recipe_schema()
    assert complaints(schema, schema, yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        ({"seqlen": 5}, "seqlen is not known"),
        ({"document_mask": "some"}, "'some' is not in"),
        ({"phases": [{"name": "a", "tokens": "1e9", "schedule": {}}]}, "mixture is missing"),
    ],
)
def test_the_schema_finds_what_is_wrong(edit, line):
    schema = recipe_schema()
    tree = yaml.safe_load((RECIPES / "llama2-7b-zh.yaml").read_text(encoding="utf-8")) | edit
    assert any(line in one for one in complaints(schema, schema, tree))
    assert json.loads(json.dumps(schema)) == schema
