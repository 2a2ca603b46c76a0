"""Readers: every record once, in order, wherever the blocks are cut; bad ones named by file and line."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.documents import pack, read_all
from tokenization.errors import UserError
from tokenization.text import documents, records
from tokenization.text.documents import DocumentFormat


def test_a_text_file_is_a_document(tmp_path):
    (tmp_path / "b.txt").write_bytes("一\n\n二\r\n".encode())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \n")
    (tmp_path / "c.txt").write_bytes(b" \n")
    assert read_all([tmp_path], DocumentFormat()) == (["one ", "一\n\n二"], [("is empty", 1)])


def test_blank_lines_part_documents(tmp_path):
    (tmp_path / "a.txt").write_text("\n\none\n one more\n \t\n\ntwo\n\n\n三\n四", newline="\n")
    texts, rejects = read_all([tmp_path / "a.txt"], DocumentFormat(txt="blocks"))
    assert texts == ["one\n one more", "two", "三\n四"]
    assert rejects == []


def test_lines_are_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\n two\nbad \xff\nthree")
    assert read_all([tmp_path / "a.txt"], DocumentFormat(txt="lines")) == (
        ["one", " two", "three"],
        [("is not UTF-8", 4)],
    )


text = st.text(alphabet="ab\n \r中é\u2028\x0b", max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(text, max_size=20), block=st.integers(1, 60), packed=st.sampled_from(["", ".gz", ".zst"])
)
def test_jsonl_is_read_alike_wherever_it_is_cut(tmp_path_factory, texts, block, packed):
    file = tmp_path_factory.mktemp("cut") / f"a.jsonl{packed}"
    file.write_bytes(pack("".join(json.dumps({"text": text}) + "\n" for text in texts).encode(), packed))
    found, rejects = read_all([file], DocumentFormat(), block)
    assert found == [text for text in texts if text.strip()]
    assert rejects == [("is empty", line) for line, text in enumerate(texts, 1) if not text.strip()]


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(
            ["", " ", "a", "bb", "中文", "c\r", "\r", "\u3000\u3000", "\u3000字", "\xa0", "\u2028"]
        ),
        max_size=24,
    ),
    block=st.integers(1, 12),
    packed=st.sampled_from(["", ".gz"]),
)
def test_paragraphs_are_read_alike_wherever_they_are_cut(tmp_path_factory, lines, block, packed):
    file = tmp_path_factory.mktemp("cut") / f"a.txt{packed}"
    file.write_bytes(pack("\n".join(lines).encode(), packed))
    expected, run = [], []
    for line in [*lines, ""]:
        if line.strip():
            run.append(line)
        elif run:
            expected.append("\n".join(run))
            run = []
    # the last line break of a run is not part of it, and a CR before that goes with it
    ends_file = lines and lines[-1].strip()
    expected = [
        text if ends_file and index == len(expected) - 1 else text.removesuffix("\r")
        for index, text in enumerate(expected)
    ]
    assert read_all([file], DocumentFormat(txt="blocks"), block)[0] == expected


@pytest.mark.parametrize("blank", ["", " \t", "\u3000\u3000", "\xa0", "\u2003 \u3000", "\x1c", "\u200a\r"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_line_of_white_space_is_an_empty_one_in_every_script(tmp_path, blank, packed):
    lines = ["一", "　二", blank, "三 ", blank, blank, "four"]
    (tmp_path / f"a.txt{packed}").write_bytes(pack("\n".join(lines).encode(), packed))
    assert read_all([tmp_path], DocumentFormat(txt="blocks"), 5) == (["一\n　二", "三 ", "four"], [])
    assert read_all([tmp_path], DocumentFormat(txt="lines"), 5) == (["一", "　二", "三 ", "four"], [])
    records = "\n".join([json.dumps({"text": "a"}), blank, json.dumps({"text": "b"})])
    (tmp_path / "b.jsonl").write_text(records)
    assert read_all([tmp_path / "b.jsonl"], DocumentFormat()) == (["a", "b"], [])


def test_white_space_is_what_python_says_it_is():
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert [char for char in characters if char.isspace()] == [
        char for char in characters if documents.is_blank(char.encode())
    ]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz"])
@pytest.mark.parametrize("txt", ["blocks", "lines"])
@pytest.mark.parametrize("text", ["one line without an end ", "a line\n", "two lines\nof a paragraph\n \n"])
def test_each_byte_of_a_stream_is_looked_at_once(tmp_path, monkeypatch, name, txt, text):
    """However small the pieces in which it comes: their number must not count twice."""
    looked = 0

    def counting(ends):
        def look(held, new, *more):
            nonlocal looked
            looked += len(held) - new
            return ends(held, new, *more)

        return look

    monkeypatch.setattr(documents, "_ends", counting(documents._ends))
    monkeypatch.setattr(documents, "_open_line", counting(documents._open_line))
    data = text.encode() * 4000
    (tmp_path / name).write_bytes(pack(data, name[-3:] if name.endswith("gz") else ".zst"))
    found = list(
        documents.blocks(
            documents.slices_of([tmp_path], DocumentFormat(txt=txt)), DocumentFormat(txt=txt), 64
        )
    )
    assert b"".join(block.data for block in found) == data
    assert looked < 4 * len(data)


def test_a_parquet_of_many_row_groups_is_opened_as_often_as_it_is_large(tmp_path, monkeypatch):
    texts = [f"text {n}" for n in range(3000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=1)
    read = []
    footer = pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda file: read.append(file) or footer(file))
    assert read_all([tmp_path], DocumentFormat(), 1 << 14) == (texts, [])
    assert len(read) == 1
    slices = documents.slices_of([tmp_path], DocumentFormat(), 1 << 14)
    size = (tmp_path / "a.parquet").stat().st_size
    assert size / (1 << 14) * 0.9 < len(slices) < size / (1 << 14) * 1.1 + 1
    assert abs(sum(piece.size for piece in slices) - size) < len(slices)
    assert [piece.row for piece in slices] == [piece.start for piece in slices]


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_parquet_and_datasets(tmp_path, block):
    table = pa.table({"id": range(6), "body": ["one", "", "二", None, "five", "six"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    dataset = tmp_path / "saved"
    dataset.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    (dataset / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    for name, part in zip(names, (table[:4], table[4:]), strict=True):
        with pa.OSFile(str(dataset / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    expected = ["one", "二", "five", "six"]
    format = DocumentFormat(text_field="body")
    assert read_all([tmp_path / "a.parquet"], format, block) == (
        expected,
        [("is empty", 2), ("is null", 4)],
    )
    assert read_all([dataset], format, block) == (expected, [("is empty", 2), ("is null", 4)])
    with pytest.raises(UserError, match="--text-field: 'text' is not a column; there are id, body"):
        documents.slices_of([tmp_path / "a.parquet"], DocumentFormat())


def test_damaged_pages_are_named(tmp_path):
    pq.write_table(pa.table({"text": [f"text {n * n}" for n in range(5000)]}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[100:400] = bytes(byte ^ 0xFF for byte in data[100:400])
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: is damaged or cut short"):
        read_all([tmp_path / "a.parquet"], DocumentFormat())


def test_a_text_file_that_is_too_much_for_one_document_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 10_000_000)
    (tmp_path / "a.txt").write_text("a line\n" * 2_000_000)
    with pytest.raises(UserError, match=r"a\.txt: is 14 MB, too large for one.*--documents lines or blocks"):
        documents.slices_of([tmp_path], DocumentFormat())
    assert documents.slices_of([tmp_path], DocumentFormat(txt="lines"))


@pytest.mark.parametrize("size", ["told", "not told"])
@pytest.mark.parametrize("packed", [".gz", ".zst", ""])
def test_one_document_that_is_too_long_is_refused_however_it_is_packed(tmp_path, monkeypatch, packed, size):
    for room in (documents, records):
        monkeypatch.setattr(room, "MAX_DOCUMENT_BYTES", 10_000)
    data = b"a line\n" * 2000
    (tmp_path / f"a.txt{packed}").write_bytes(data if not packed else pack(data, packed))
    if size == "not told":  # such as by zstd at the end of a pipe
        monkeypatch.setattr(documents, "_unpacked_size", lambda path: 0)
        if not packed:
            monkeypatch.setattr(documents, "refuse_long", lambda *_: None)
    with pytest.raises(
        UserError, match=rf"a\.txt{packed}: is .*too large for one document; give --documents"
    ):
        read_all([tmp_path], DocumentFormat())
    (tmp_path / f"a.txt{packed}").write_bytes(b"small" if not packed else pack(b"small", packed))
    assert read_all([tmp_path], DocumentFormat()) == (["small"], [])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_archive_is_named(tmp_path, name):
    data = pack(b'{"text": "a"}\n' * 1000, name[-3:] if name.endswith("gz") else ".zst")
    (tmp_path / name).write_bytes(data[:-5])
    with pytest.raises(UserError, match=f"{name}: is damaged or cut short"):
        read_all([tmp_path / name], DocumentFormat())


def test_slices_grow_with_the_input(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 10)
    monkeypatch.setattr(documents, "_SLICES", 8)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 100)
    slices = documents.slices_of([tmp_path], DocumentFormat())
    assert len(slices) == 8  # 1,400 bytes in blocks of 10, 18 of them a slice
    assert [piece.size for piece in slices] == [180] * 7 + [140]
    assert len(list(documents.blocks(slices, DocumentFormat(), 10))) == 140
