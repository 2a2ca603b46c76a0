"""What an input folder is: whose files are read as text, once each, and what a line says of the others."""

from __future__ import annotations

import gzip
import os

import pytest
import zstandard

from tokenization.errors import UserError
from tokenization.text import documents, inputs
from tokenization.text.documents import DocumentFormat
from tokenization.text.inputs import find_files
from tokenization.text.texts import Texts


def read(paths, **format):
    texts = Texts(paths, DocumentFormat(**format))
    return [text for path in texts.files for text in texts.read(path)]


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


@pytest.mark.parametrize(
    "name",
    [
        ".a.txt",
        "._a.txt",
        ".ipynb_checkpoints/a.txt",
        ".Trash-1000/files/a.txt",
        "__MACOSX/._a.txt",
        "$RECYCLE.BIN/a.txt",
        "@eaDir/a.txt",
        ".git/info/exclude.txt",
    ],
)
def test_hidden_files_are_not_text(tmp_path, name):
    fill(tmp_path / "in", ["a.txt", "b/c.txt", f"b/{name}"])
    assert read([tmp_path / "in"]) == ["text of a.txt", "text of b/c.txt"]
    hidden = name.split("/")[0]
    assert find_files([tmp_path / "in"]).left_out == f"left out 1 hidden file(s) or folder(s): {hidden}"


def test_a_hidden_folder_that_is_named_is_read(tmp_path):
    fill(tmp_path, [".cache/a.txt"])
    assert read([tmp_path / ".cache"]) == ["text of .cache/a.txt"]


def test_what_rewarm_wrote_is_not_text(tmp_path):
    ours = [
        *(f"out.{end}" for end in ("bin", "idx", "json", "prepared.json", "rejects.jsonl")),
        *(f"parts-00000-of-00002.{end}" for end in ("bin.partial", "idx.partial", "prepared.json")),
        "parts.duplicates.npz.lock",
        "lost.rejects.jsonl",  # whose shard was removed
        "run/metrics.jsonl",
        "run/recipe.resolved.yaml",
        "study/arms.txt",
        "study/arm/recipe.resolved.yaml",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    ]
    texts = ["a.txt", "out.txt", "poems/arms.txt", "vocab.txt"]
    fill(tmp_path, [*ours, *texts])
    assert read([tmp_path]) == [f"text of {name}" for name in texts]
    told = find_files([tmp_path]).left_out
    assert "file(s) or folder(s) that rewarm wrote: " in told
    with pytest.raises(
        UserError, match=r"lost\.rejects\.jsonl: is a list of records that `data prepare` left"
    ):
        find_files([tmp_path / "lost.rejects.jsonl"])
    with pytest.raises(UserError, match=r"run: has no .* file \(left out 1 file.*that rewarm wrote: run\)"):
        find_files([tmp_path / "run"])


def test_the_names_of_other_rooms_are_theirs():
    from trainer.storage.run_directory import RunDirectory
    from trainer.study.series import ARMS

    assert RunDirectory("x").recipe.name == inputs._RUN
    assert ARMS == "arms.txt"


def test_a_file_is_read_once_however_often_it_is_named(tmp_path):
    fill(tmp_path / "in", ["a.txt", "b.txt"])
    (tmp_path / "in" / "c.txt").symlink_to("a.txt")
    os.link(tmp_path / "in" / "b.txt", tmp_path / "in" / "d.txt")
    named = [tmp_path / "in", tmp_path / "in" / "a.txt", tmp_path / "in" / ".." / "in"]
    assert read(named) == ["text of a.txt", "text of b.txt"]
    told = find_files(named).left_out
    assert told == "left out 7 file(s) named before: c.txt, d.txt, a.txt, a.txt, b.txt, …"


@pytest.mark.parametrize(
    "name",
    [
        "c4-train.00000-of-01024.json.gz",
        "part-0001.json",
        "cc.ndjson",
        "cc.ndjson.gz",
        "DATA.JSONL",
        "Data.Json.GZ",
        "x.jsonl.zstd",
        "x.json.zst",
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_names_of_json_lines(tmp_path, name, named):
    data = b'{"text": "one"}\n{"text": "two"}\n'
    lower = name.lower()
    packed = gzip.compress(data) if lower.endswith(".gz") else zstandard.compress(data)
    (tmp_path / name).write_bytes(packed if lower.endswith((".gz", ".zst", ".zstd")) else data)
    assert read([tmp_path / name if named else tmp_path]) == ["one", "two"]


@pytest.mark.parametrize("name", ["A.TXT", "a.txt.GZ", "a.Txt.zstd"])
def test_names_of_text(tmp_path, name):
    lower = name.lower()
    data = "一\n".encode()
    packed = gzip.compress(data) if lower.endswith(".gz") else zstandard.compress(data)
    (tmp_path / name).write_bytes(packed if lower.endswith((".gz", ".zstd")) else data)
    assert read([tmp_path]) == ["一"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('{"text": "a"}', True),
        ('\ufeff{"text": "a"}\n', True),
        ('\n\n{"text": "a"}\n', True),
        ('{"body": "a"}\n{"body": "b"}\n', True),  # --text-field is wrong, which is told record by record
        ('{"last": 7}', False),
        ('{\n  "text": "a"\n}\n', False),
        ('[{"text": "a"}, {"text": "b"}]\n', False),
        ('"text"\n"text"\n', False),
        ("", False),
        ("not JSON\n", False),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_json_is_read_if_it_holds_json_lines(tmp_path, text, lines, encoding):
    (tmp_path / "a.json").write_bytes(text.removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding))
    (tmp_path / "b.txt").write_text("b")
    found = find_files([tmp_path], encoding=encoding)
    assert [file.name for file in found.files] == ["a.json"] * lines + ["b.txt"]
    assert found.left_out == (None if lines else "left out 1 file(s) of other kinds: a.json")
    if not lines:
        with pytest.raises(
            UserError, match=r"a\.json: is JSON, but not one JSON object per line; convert it"
        ):
            find_files([tmp_path / "a.json"], encoding=encoding)


def test_a_file_whose_name_is_not_utf_8_is_read_whatever_it_holds(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = os.fsdecode("水浒传".encode("gbk"))
    (tmp_path / f"{name}.txt").write_text("一")
    with open(tmp_path / f"{name}.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["二"]}), file)
    assert sorted(read([tmp_path])) == ["一", "二"]
    assert documents.slices_of([tmp_path], DocumentFormat())
