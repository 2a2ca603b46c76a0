"""Records: texts and rejects of a block, each with its place."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.documents import pack, read_all
from tokenization.errors import InfrastructureError
from tokenization.text import documents, records
from tokenization.text.documents import DocumentFormat


def test_bad_records_are_named(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"text": ""}',
        b'{"text": " \\n"}',
        b"",
        b'{"body": "x"}',
        b'{"text": 3}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "a"},{"text": "b"}',
        '{"text": "好"}\r'.encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    texts, rejects = read_all([tmp_path / "a.jsonl"], DocumentFormat())
    assert texts == ["good", "好"]
    assert rejects == [
        ("is not JSON (Expecting property name enclosed in double quotes)", 2),
        ("is empty", 3),
        ("is empty", 4),
        ("has no field 'text'", 6),
        ("is not text", 7),
        ("is not a JSON object", 8),
        ("is not UTF-8", 9),
        ("has a lone surrogate", 10),
        ("is not JSON (Extra data)", 11),
    ]


def test_lines_that_are_json_only_together_are_rejected(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "more": [1\n2], "text": "b"}\n{"text": "c"}\n')
    texts, rejects = read_all([tmp_path / "a.jsonl"], DocumentFormat())
    assert texts == ["c"]
    assert [line for _, line in rejects] == [1, 2]


def test_a_column_of_text_with_bytes_that_are_none_has_rejects(tmp_path):
    column = pa.array([b"one", b"\xff", b"three"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read_all([tmp_path / "a.parquet"], DocumentFormat()) == (["one", "three"], [("is not UTF-8", 2)])


@pytest.mark.parametrize(
    ("txt", "packed"),
    [("lines", ""), ("blocks", ""), ("lines", ".gz"), ("blocks", ".gz")],
)
def test_a_record_without_end_is_a_reject_not_a_heap(tmp_path, monkeypatch, packed, txt):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(records, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(records, "BLOCK_BYTES", 10)
    text = "before\n\n" + "long " * 100 + "\n\nafter\n"
    (tmp_path / f"a.txt{packed}").write_bytes(pack(text.encode(), packed))
    texts, rejects = read_all([tmp_path], DocumentFormat(txt=txt), 10)
    assert texts == ["before", "after"]
    assert rejects == [(f"is longer than {32} MiB", 3)]


def test_numbers_are_lines_of_the_unpacked_file(tmp_path):
    lines = [b'{"text": "x"}'] * 5000 + [b"bad"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    assert read_all([tmp_path / "a.jsonl.gz"], DocumentFormat(), 100)[1][0][1] == 5001


def test_a_file_that_goes_away_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    block = next(documents.blocks(documents.slices_of([tmp_path], DocumentFormat()), DocumentFormat()))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(InfrastructureError, match=r"a\.jsonl: cannot be read"):
        records.read_records(block, DocumentFormat())
