"""Readers: every record once, in order, wherever the blocks are cut; bad ones named by file and line."""

from __future__ import annotations

import errno
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.errors import InfrastructureError, UserError
from tokenization.text import documents, records
from tokenization.text.documents import DocumentFormat
from tokenization.text.inputs import find_files


def read_all(paths, format, block_bytes=documents.BLOCK_BYTES):
    texts, rejects = [], []
    for block in documents.blocks(documents.slices_of(paths, format, block_bytes), format, block_bytes):
        batch = records.read_records(block, format)
        assert [len(text.encode()) for text in batch.texts] == batch.sizes
        texts += batch.texts
        rejects += batch.rejects
    return texts, [(reject.why, line) for reject, line in records.number(rejects)]


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


def pack(data, packed):
    if packed == ".gz":
        return gzip.compress(data)
    if packed == ".zst":  # two frames, as parallel compressors write them
        half = len(data) // 2
        return b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))
    return data


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


def test_a_directory_that_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"text": ["one", "二"]})
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "splits")
    assert read_all([tmp_path / "one"], DocumentFormat())[0] == ["one", "二"]
    assert read_all([tmp_path / "splits" / "train"], DocumentFormat())[0] == ["one", "二"]
    with pytest.raises(UserError, match=r"holds several splits; name one split: .*train"):
        documents.slices_of([tmp_path / "splits"], DocumentFormat())


def test_directories_are_read_in_the_order_of_names(tmp_path):
    for name in ("b/x.jsonl", "a.jsonl", "c.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = json.dumps({"text": name}).encode()
        (tmp_path / name).write_bytes(pack(data, name[-3:] if name.endswith(".gz") else ""))
    (tmp_path / "README.md").write_text("not data")
    assert read_all([tmp_path], DocumentFormat())[0] == ["a.jsonl", "b/x.jsonl", "c.jsonl.gz"]


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("linked")
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "y.txt").write_text("own")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b" / "up").symlink_to(tmp_path / "in")
    assert read_all([tmp_path / "in"], DocumentFormat())[0] == ["linked", "own"]


def test_what_is_left_out_is_named(tmp_path):
    for name in ("a.txt", "b/c.json", "d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"x of {name}")
    found = find_files([tmp_path])
    assert found.files == [tmp_path / "a.txt"]
    assert found.left_out == "left out 2 file(s) of other kinds: c.json, d.csv"
    for number in range(5):
        (tmp_path / f"e{number}").write_text("")
    assert find_files([tmp_path]).left_out == (
        "left out 7 file(s) of other kinds: c.json, d.csv, e0, e1, e2, …"
    )
    assert find_files([tmp_path / "a.txt"]).left_out is None


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("x")
    scandir = os.scandir

    def closed(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\)"):
        find_files([tmp_path])


def saved_dataset(folder, texts):
    """As `datasets` saves one."""
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    table = pa.table({"text": texts})
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return folder


def test_a_saved_dataset_within_a_folder_is_read(tmp_path):
    saved_dataset(tmp_path / "in" / "b", ["two", "three"])
    (tmp_path / "in" / "a.txt").write_text("one")
    (tmp_path / "in" / "state.json").write_text('{"last": 7}')  # some other program's
    assert read_all([tmp_path / "in"], DocumentFormat())[0] == ["one", "two", "three"]
    assert find_files([tmp_path / "in"]).left_out == "left out 1 file(s) of other kinds: state.json"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.arrow", None, r"data\.arrow: does not exist"),
        ("state.json", "", r"state\.json: was not saved by `datasets`"),
        ("state.json", "[]", r"state\.json: was not saved by `datasets`"),
        ("dataset_dict.json", '{"splits": 3}', r"dataset_dict\.json: was not saved by `datasets`"),
    ],
)
def test_a_saved_dataset_that_is_damaged_is_named(tmp_path, name, text, message):
    saved_dataset(tmp_path / "in", ["one"])
    (tmp_path / "in" / name).unlink(missing_ok=True)
    if text is not None:
        (tmp_path / "in" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        documents.slices_of([tmp_path / "in"], DocumentFormat())


def test_damaged_pages_are_named(tmp_path):
    pq.write_table(pa.table({"text": [f"text {n * n}" for n in range(5000)]}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[100:400] = bytes(byte ^ 0xFF for byte in data[100:400])
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: is damaged or cut short"):
        read_all([tmp_path / "a.parquet"], DocumentFormat())


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none", "does not exist"),
        (lambda path: path, "has no .txt .jsonl"),
        (lambda path: ((path / "a.pdf").write_text("") and path) or path / "a.pdf", "is not of a known kind"),
        (lambda path: (path / "a.parquet").write_bytes(b"x") and path / "a.parquet", "cannot be read"),
        (lambda path: (path / "a.txt").symlink_to("gone") or path, r"a\.txt: does not exist"),
        (lambda path: os.mkfifo(path / "a.jsonl") or path, r"a\.jsonl: is not a regular file"),
    ],
)
def test_inputs_that_are_none_are_named(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        documents.slices_of([make(tmp_path)], DocumentFormat())


def test_numbers_are_lines_of_the_unpacked_file(tmp_path):
    lines = [b'{"text": "x"}'] * 5000 + [b"bad"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    assert read_all([tmp_path / "a.jsonl.gz"], DocumentFormat(), 100)[1][0][1] == 5001


def test_slices_grow_with_the_input(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 10)
    monkeypatch.setattr(documents, "_SLICES", 8)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 100)
    slices = documents.slices_of([tmp_path], DocumentFormat())
    assert len(slices) == 8  # 1,400 bytes in blocks of 10, 18 of them a slice
    assert [piece.size for piece in slices] == [180] * 7 + [140]
    assert len(list(documents.blocks(slices, DocumentFormat(), 10))) == 140


def test_a_file_that_goes_away_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    block = next(documents.blocks(documents.slices_of([tmp_path], DocumentFormat()), DocumentFormat()))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(InfrastructureError, match=r"a\.jsonl: cannot be read"):
        records.read_records(block, DocumentFormat())
