"""The guides say what the software does: its parser reads their commands, and the messages are its own."""

import ast
import re
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest

from tests.helpers import runs
from tests.helpers.pages import lines_to_type
from trainer.cli.main import _parse

DOCS = runs.ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
PAGES = [*DOCS.rglob("*.md"), *runs.ROOT.glob("README*.md")]


def commands(text):
    """The arguments of every `rewarm` in the fenced blocks of a page."""
    return [words[1:] for words in lines_to_type(text) if words[0] == "rewarm"]


def facts(section):
    """What a section says in any language, each kind in any order: sentences are built differently."""
    prose = re.sub(r"^```bash\n.*?^```", "", section, flags=re.MULTILINE | re.DOTALL)
    return {
        "paragraphs": len(re.findall(r"\n\n(?=\S)", section)),
        "bullets": len(re.findall(r"^- ", section, re.MULTILINE)),
        "rows": [row.count("|") for row in section.splitlines() if row.startswith("|")],
        "columns": re.findall(r"^\|[-:|]+$", section, re.MULTILINE),
        "commands": lines_to_type(section),
        "output": re.findall(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL),
        "links": Counter(link.replace("docs/guides/", "docs/zh/") for link in links(prose)),
        "code": Counter(re.findall(r"`([^`\n]+)`", prose)),
        "numbers": Counter(re.findall(r"(?<![A-Za-z-])\d(?:[\d.,]*\d)?", prose)),
    }


def anchors(text):
    """What a link may name after `#`: the headings as GitHub and the site both spell them."""
    found = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE
    ):
        github = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        if github == re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()):
            found.add(github)
    return found


def links(text):
    """The target of every link and picture outside of code, whatever its form."""
    prose = re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    forms = (r"\]\(\s*([^)\s]+)", r"^\[[^\]]+\]:\s*(\S+)", r"""(?:href|src)=["']([^"']+)""")
    return [target for form in forms for target in re.findall(form, prose, re.MULTILINE)]


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}-{path.name}")


@by_name(PAGES)
def test_every_command_in_the_documentation_is_one(path):
    for words in commands(path.read_text(encoding="utf-8")):
        assert callable(_parse([word for word in words if word != "…"]).command), words


def broken(path, text):
    """The links of a page at which `mkdocs build` would end; those of other pages that lead nowhere."""
    for link in links(text):
        if re.match(r"(https?|mailto):", link):
            continue
        target, _, anchor = link.partition("#")
        page = (path.parent / target).resolve() if target else path
        of_site = path.is_relative_to(DOCS)
        if target.startswith("/") or not (page.is_file() if of_site else page.exists()):
            yield f"{link} does not lead to a file"
        elif of_site and not page.is_relative_to(DOCS):
            yield f"{link} leads out of docs/: name the file as code"
        elif anchor and anchor not in anchors(page.read_text(encoding="utf-8")):
            yield f"{link} is not the name of a heading"


@by_name(PAGES)
def test_every_link_leads_to_a_file(path):
    assert list(broken(path, path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "link",
    ["gone.md", "guides/", "/plan.md", "../README.md", "plan.md#gone", "#gone", "studies.md#二"],
)
@pytest.mark.parametrize("form", ["[a]({})", "![a]({})", "[a][b]\n\n[b]: {}", '<a href="{}">'])
def test_a_link_at_which_the_site_would_not_be_built_is_named(link, form):
    assert len(list(broken(DOCS / "index.md", "# 二\n\n" + form.format(link)))) == 1


@pytest.mark.parametrize(
    "link", ["studies.md#laws", "guides/your-own-data.md", "quickstart.png", "https://arxiv.org"]
)
def test_a_link_to_a_page_or_a_heading_is_taken(link):
    assert (
        list(broken(DOCS / "index.md", f"[a]({link}) `[a](gone.md)`\n\n```text\n[a](gone.md)\n```\n")) == []
    )


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


def test_the_guide_to_memory_shows_what_its_first_command_prints(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no base is: the clone may have a user's
    page = (DOCS / "guides" / "zero-and-memory.md").read_text(encoding="utf-8")
    asked = _parse(commands(page)[0])
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
