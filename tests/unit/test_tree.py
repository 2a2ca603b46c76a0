"""The tree keeps its own rules: sizes, names, floors' doors, and plain English."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("trainer", "tokenization")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ROOMS = {
    "trainer": {
        "recipe", "machine", "storage", "scheduler", "mixer", "model", "engine", "metrics", "checkpoint",
        "evaluation", "plan", "run", "report", "study", "cli",
    },
    "tokenization": {"text", "tokenizer", "shards", "vocabulary", "prepare"},
}  # fmt: skip
LOOSE = {"trainer": {"__init__.py"}, "tokenization": {"__init__.py", "errors.py", "disk.py", "tables.py"}}

SHARED_NAMES: set[str] = set()
"""Public names that two rooms may define, each with a reason."""

BANNED = {
    r"(?<!\b[Tt]here )\b(is|are) no\b": "write 'is not a …'",
    r"\bmend(s|ed|ing)?\b": "write fix",
    r"\bways? on\b": "write option",
    r"\blocks of the dead\b": "write stale locks",
    r"\b(borne|anew|thence|whence|hither|thither|ere|aught|naught|forthwith)\b": "write a common word",
    r"\b(asked|told) (is|was)\b|\btold (of|apart)\b|\bto be told\b": "name the request or the result",
}
"""What a string literal may not contain, and what to write in its place."""


def where(path):
    return path.relative_to(ROOT).as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_holds_its_rooms_and_nothing_loose(package):
    folder = ROOT / package
    assert {path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"} == ROOMS[
        package
    ]
    assert {path.name for path in folder.glob("*.py")} == LOOSE[package]


def test_an_init_tells_the_room_s_story_and_holds_no_code():
    for path in FILES:
        if path.name == "__init__.py":
            first, *rest = tree_of(path).body
            assert isinstance(first, ast.Expr), where(path)
            assert isinstance(first.value, ast.Constant), where(path)
            allowed = path.parent == ROOT / "trainer"  # the version
            assert not rest or (allowed and len(rest) == 1), where(path)


def test_no_file_has_over_400_lines_and_no_function_over_60():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, where(path)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{where(path)}: {node.name} has {lines} lines"


def test_no_public_name_is_defined_in_two_rooms():
    rooms = defaultdict(set)
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [
                    one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)
                ]
            else:
                continue
            for name in names:
                if not name.startswith("_"):
                    rooms[name].add(where(path.parent))
    twice = {
        name: sorted(places) for name, places in rooms.items() if len(places) > 1 and name not in SHARED_NAMES
    }
    assert twice == {}


def test_a_name_is_imported_from_the_file_that_defines_it():
    defined = {}
    for path in FILES:
        module = where(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names = set()
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {
                    one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)
                }
        defined[module] = names
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                for alias in node.names:
                    found = alias.name in defined[node.module] or f"{node.module}.{alias.name}" in defined
                    assert found, f"{where(path)}:{node.lineno}: {alias.name} is not defined in {node.module}"


@pytest.mark.parametrize("pattern", BANNED)
def test_messages_and_docstrings_are_plain_english(pattern):
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.search(pattern, node.value)
                assert not found, f"{where(path)}:{node.lineno}: {found[0]!r}: {BANNED[pattern]}"
