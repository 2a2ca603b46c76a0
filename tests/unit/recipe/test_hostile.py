"""Whatever a recipe file holds, it is a recipe or lines that say what is wrong with it."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import runs
from tokenization.errors import RewarmError, UserError
from trainer.recipe.load import dump_recipe, load_recipe, parse_recipe
from trainer.recipe.yaml_text import read_yaml

SHIPPED = [path.read_text(encoding="utf-8") for path in sorted((runs.ROOT / "launch/recipes").glob("*.yaml"))]

BITS = [
    *(
        "[",
        "]",
        "{",
        "}",
        ": ",
        " - ",
        "*a",
        "&a ",
        "? ",
        "|\n",
        "<<: ",
        "---\n",
        "...\n",
        "%",
        "#",
        "'",
        '"',
    ),
    *(
        "1e999999999",
        "1/0",
        "9" * 5000,
        "-1",
        "NaN",
        ".inf",
        "0x10",
        "1e-9999",
        "true",
        "null",
        "~",
        "{}",
        "[]",
    ),
    *(
        "!!python/object/apply:os.system [x]",
        "!!binary aGk=",
        "\x00",
        "\t",
        "\r",
        "é",
        "\ud7ff",
        "[(",
        "dict",
    ),
]


@settings(max_examples=150, deadline=None)
@given(
    text=st.sampled_from(SHIPPED),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(BITS), st.integers(0, 9)), min_size=1, max_size=5
    ),
)
def test_a_damaged_recipe_is_a_recipe_or_lines(text, edits):
    for place, bit, removed in edits:
        at = int(place * len(text))
        text = text[:at] + bit + text[at + removed :]
    check(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from(BITS), max_size=12).map("".join))
def test_any_text_is_a_recipe_or_lines(text):
    check(text)


def check(text):
    try:
        recipe = parse_recipe(text)
    except RewarmError:
        return
    assert parse_recipe(dump_recipe(recipe)) == recipe


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)
)
"""Ten levels of nine aliases each: three thousand million values in a kilobyte."""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, "grows to more than 100,000 values by its aliases"),
        ("model: &x {init: *x}", "holds itself by an alias"),
        ("[" * 100_000, "is not YAML"),
        ('run_dir: "a\\0b"', "holds the character NUL"),
        ("run: !!python/object/apply:os.system [touch /tmp/x]", "is not YAML"),
    ],
)
def test_what_would_take_all_memory_or_run_code_is_refused_at_once(text, line):
    began = time.monotonic()
    with pytest.raises(UserError, match=line):
        parse_recipe(text)
    assert time.monotonic() - began < 60  # a hang, not a slow machine


def test_an_alias_that_is_used_twice_is_fine():
    assert read_yaml("a: &a {b: 1}\nc: [*a, *a]")["c"] == [{"b": "1"}, {"b": "1"}]


@pytest.mark.parametrize("name", ["", ".", "nowhere.yaml", "x/\udcff.yaml"])
def test_a_path_that_is_not_a_recipe_is_a_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(Path(name))
