"""The counts of a job: every record is in a shard or counted with the reason why it is not."""

from __future__ import annotations

import json
import os
from fractions import Fraction

import pytest

from tests.helpers.corpus import TEXTS, decoded, run, write
from tokenization.errors import UserError
from tokenization.shards.store import open_tokens


def test_rejects_are_counted_and_shown(tmp_path, corpus, tokenizer):
    (corpus / "3.jsonl").write_bytes(b'{"text": "ok"}\n{"text": ""}\nbroken\n{"text": "\xff"}\n')
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert made.documents == 251
    assert made.rejects == {"is empty": 1, "is not JSON (Expecting value)": 1, "is not UTF-8": 1}
    shown = [json.loads(line) for line in (tmp_path / "out" / "a.rejects.jsonl").read_text().splitlines()]
    assert [(os.path.basename(row["file"]), row["line"], row["why"]) for row in shown] == [
        ("3.jsonl", 2, "is empty"),
        ("3.jsonl", 3, "is not JSON (Expecting value)"),
        ("3.jsonl", 4, "is not UTF-8"),
    ]
    assert made.rejects == run(corpus, tokenizer, tmp_path / "out" / "a").rejects


def test_too_many_rejects_end_the_job(tmp_path, corpus, tokenizer):
    (corpus / "3.jsonl").write_text("broken\n" * 3)
    run(corpus, tokenizer, tmp_path / "enough" / "a", max_rejects=3)
    with pytest.raises(
        UserError, match=r"3\.jsonl:1: is not JSON .*3 of 253 records are not documents.*2 are allowed"
    ):
        run(corpus, tokenizer, tmp_path / "out" / "a", max_rejects=2)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"a.prepared.json", "a.rejects.jsonl"}


@pytest.mark.parametrize(
    ("limit", "bad", "allowed"),
    [
        (None, 33, True),  # 10 %: 33 of 333
        (None, 34, False),
        (Fraction(1, 2), 300, True),
        (Fraction(1, 2), 301, False),
        (Fraction(1, 100), 3, True),
        (Fraction(1, 100), 4, False),
        (7, 7, True),
        (7, 8, False),
        (0, 1, False),
        (Fraction(1), 5000, True),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_rejects_are_allowed_up_to_a_number_or_a_share(
    tmp_path, corpus, tokenizer, limit, bad, allowed, workers
):
    (corpus / "3a.jsonl").write_text("broken\n" * bad)
    (corpus / "9.jsonl").write_text('{"text": " "}\n{"text": null}\n' * 500)  # which lose no text
    write(corpus, "9.jsonl", [" ", None] * 500)
    bad_share = bad / (1300 + bad)
    if limit is None or isinstance(limit, Fraction):  # of all records, the empty ones too
        allowed = bad_share <= (Fraction(1, 10) if limit is None else limit)
    out = tmp_path / "out" / "a"
    if allowed:
        made = run(corpus, tokenizer, out, max_rejects=limit, workers=workers)
        assert made.rejects["is not JSON (Expecting value)"] == bad
        assert decoded(out, tokenizer) == TEXTS
    else:
        with pytest.raises(
            UserError, match=rf"3a\.jsonl:1: is not JSON.*{bad:,} of .* records are not documents"
        ):
            run(corpus, tokenizer, out, max_rejects=limit, workers=workers)
        with pytest.raises(UserError):
            open_tokens(out)


def test_records_without_text_are_counted_and_lose_none(tmp_path, corpus, tokenizer):
    write(corpus, "9.jsonl", [" ", None, ""] * 700)
    made = run(corpus, tokenizer, tmp_path / "a", max_rejects=0)
    assert made.rejects == {"is empty": 1400, "is null": 700}
    assert "left out 1,400: is empty (9.jsonl)" in made.to_text()


def test_a_corpus_that_is_lost_is_not_read_to_its_end(tmp_path, tokenizer, monkeypatch):
    """The wrong --text-field of a terabyte is told after minutes."""
    from tokenization.prepare import workers as workers_

    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.jsonl").write_text('{"body": "x"}\n' * 100)
    write(folder, "99.jsonl", TEXTS)
    monkeypatch.setattr(workers_.tasks, "__defaults__", (1,))
    with pytest.raises(UserError, match=r"00\.jsonl:1: has no field 'text': 1,100 of 1,100 records are not"):
        run(folder, tokenizer, tmp_path / "out" / "a", max_rejects=Fraction(1, 10))


def books(folder, encoding, count, texts):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{encoding}-{number:02}.txt").write_text("\n".join(texts), encoding=encoding)


CHINESE = ["这是我们中国的第一条法律，人民在这里有了自己的规定。", "他们来到这个国家以后，不会说这是不对的。"]


@pytest.mark.parametrize("txt", ["file", "lines", "blocks"])
def test_books_in_another_encoding_are_named_with_the_option_that_reads_them(tmp_path, tokenizer, txt):
    books(tmp_path / "in", "gb18030", 60, CHINESE)
    books(tmp_path / "in", "utf-8", 1, CHINESE)
    told = r"gb18030-00\.txt:1: is not UTF-8 but gb18030.*are not documents.*; give --encoding gb18030"
    with pytest.raises(UserError, match=told):
        run(tmp_path / "in", tokenizer, tmp_path / "out" / "a", txt=txt)
    with pytest.raises(UserError):
        open_tokens(tmp_path / "out" / "a")
    run(tmp_path / "in", tokenizer, tmp_path / "out" / "a", txt=txt, encoding="GB18030")
    documents = CHINESE if txt == "lines" else ["\n".join(CHINESE)]
    assert decoded(tmp_path / "out" / "a", tokenizer) == documents * 61


def test_a_few_books_in_another_encoding_are_told_by_name(tmp_path, tokenizer):
    books(tmp_path / "in", "gb18030", 5, CHINESE)
    books(tmp_path / "in", "utf-8", 60, CHINESE)
    for again in range(2):
        made = run(tmp_path / "in", tokenizer, tmp_path / "out" / "a")
        assert made.finished_before == again
        assert (
            "left out 5: is not UTF-8 but gb18030 (gb18030-00.txt, gb18030-01.txt, gb18030-02.txt, …);"
            " give --encoding gb18030"
        ) in made.to_text()


def test_the_wrong_field_is_told(tmp_path, corpus, tokenizer):
    with pytest.raises(UserError, match=r"has no field 'body': 300 of 300 records are not.*--text-field"):
        run(corpus, tokenizer, tmp_path / "out" / "a", text_field="body")


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("", "name files that hold text"),
        ('{"text": ""}\n', r"see the \.rejects\.jsonl of --out"),
        ('{"text": null}\n', "is --text-field right"),
    ],
)
def test_what_to_do_without_a_document_follows_from_the_reason(tmp_path, tokenizer, text, fix):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=f"has no document.*; {fix}"):
        run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out" / "a")


def test_what_was_left_out_and_held_out_is_told(tmp_path, corpus, tokenizer):
    (corpus / "c.json").write_text("[]")
    told = run(corpus, tokenizer, tmp_path / "out" / "a", validation=Fraction(1, 10**9)).to_text()
    assert "left out 1 file(s) of other kinds: c.json" in told
    assert "validation: 0 documents, 0 tokens; give a larger --validation" in told
    assert "validation" not in run(corpus, tokenizer, tmp_path / "whole" / "a").to_text()


def test_rejects_of_a_file_whose_name_is_not_utf_8(tmp_path, corpus, tokenizer):
    name = os.fsdecode(b"\xff.jsonl")
    (corpus / name).write_text('broken\n{"text": "ok"}\n')
    (corpus / os.fsdecode(b"\xfe.json")).write_text("")
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert made.documents == 301
    assert made.to_text().encode()
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "a.rejects.jsonl").read_text().splitlines()]
    assert row["file"].endswith("/\\xff.jsonl")
