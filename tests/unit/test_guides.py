"""The guides say what the software does: its parser reads their commands, and the messages are its own."""

import ast
import re
import shlex
from collections import Counter
from itertools import pairwise

import pytest

from tests.helpers import runs
from trainer.cli.main import _parse

DOCS = runs.ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
PAGES = [*DOCS.rglob("*.md"), *runs.ROOT.glob("README*.md")]


def commands(text):
    """Every command line of `rewarm` in the fenced blocks of a page; continued lines are joined."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("rewarm "):
                yield shlex.split(line, comments=True)[1:]


def lines_to_type(text):
    """Every line of the `bash` blocks of a page, as words and without its comment."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def facts(section):
    """What a section says in any language, each kind in any order: sentences are built differently."""
    prose = re.sub(r"^```bash\n.*?^```", "", section, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)", prose)
    return {
        "paragraphs": len(re.findall(r"\n\n(?=\S)", section)),
        "bullets": len(re.findall(r"^- ", section, re.MULTILINE)),
        "rows": [row.count("|") for row in section.splitlines() if row.startswith("|")],
        "columns": re.findall(r"^\|[-:|]+$", section, re.MULTILINE),
        "commands": lines_to_type(section),
        "output": re.findall(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL),
        "links": Counter(link.replace("docs/guides/", "docs/zh/") for link in links),
        "code": Counter(re.findall(r"`([^`\n]+)`", prose)),
        "numbers": Counter(re.findall(r"(?<![A-Za-z-])\d(?:[\d.,]*\d)?", prose)),
    }


def anchors(text):
    """What a link may name after `#`: the headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}-{path.name}")


@by_name(PAGES)
def test_every_command_in_the_documentation_is_one(path):
    for words in commands(path.read_text(encoding="utf-8")):
        assert callable(_parse([word for word in words if word != "…"]).command), words


@by_name(PAGES)
def test_every_link_leads_to_a_file(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", text):
        page = path.parent / target if target else path
        assert anchor in anchors(page.read_text(encoding="utf-8")), f"{target}#{anchor}"


@by_name([*GUIDES, *sorted((DOCS / "zh").glob("*.md"))])
def test_a_guide_begins_with_its_commands(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert lines[2] == "```bash"
    assert len(lines) < 80


@by_name(GUIDES)
def test_the_chinese_guide_says_what_the_english_one_says(path):
    english = path.read_text(encoding="utf-8")
    chinese = (DOCS / "zh" / path.name).read_text(encoding="utf-8")
    assert re.findall(r"^(#+) ", english, re.MULTILINE) == re.findall(r"^(#+) ", chinese, re.MULTILINE)
    assert facts(english) == facts(chinese)
    assert sum("\u4e00" <= character <= "\u9fff" for character in chinese) > 150
    assert {file.name for file in (DOCS / "zh").glob("*.md")} == {file.name for file in GUIDES}


def test_the_chinese_readme_says_what_the_english_one_says():
    both = [(runs.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
    english, chinese = (re.split(r"^## ", text, flags=re.MULTILINE) for text in both)
    assert "](README.zh-CN.md)" in english[0]
    assert "](README.md)" in chinese[0]
    english[0] = english[0].replace("](README.zh-CN.md)", "](README.md)")
    assert len(english) == len(chinese) > 5
    for one, other in zip(english, chinese, strict=True):
        assert facts(one) == facts(other), other.splitlines()[0]
        # A Chinese character stands for about three letters, and commands are letters in both.
        letters, characters = len(re.findall("[a-z]", one)), len(re.findall("[一-鿿]", other))
        assert characters > letters / 8, other.splitlines()[0]


def test_the_guide_to_memory_shows_what_its_first_command_prints(capsys, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    page = (DOCS / "guides" / "zero-and-memory.md").read_text(encoding="utf-8")
    asked = _parse(next(commands(page)))
    asked.command(asked)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    (shown,) = facts(page)["output"]
    for line in shown.splitlines():
        assert line.split() in printed, line


def strings():
    """Every string in the source, with what an f-string computes left out."""
    for room in ("trainer", "tokenization"):
        for file in (runs.ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_messages_that_are_explained_are_those_of_the_software():
    text = (DOCS / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(messages) > 10
    known = list(strings())
    for message in messages:
        for part in filter(None, (one.strip() for one in message.split("…"))):
            # A docstring that happens to say it is longer than a line of an error.
            assert any(part in one for one in known if len(one) < 200), part


def test_the_site_lists_every_page_once():
    import yaml

    def leaves(tree):
        for one in tree:
            for value in one.values():
                yield from leaves(value) if isinstance(value, list) else [value]

    listed = list(leaves(yaml.safe_load((runs.ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert all(one != other for one, other in pairwise(sorted(listed)))
