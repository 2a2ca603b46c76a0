"""What an input folder is: whose files are read as text, once each, and what a line says of the others."""

from __future__ import annotations

import errno
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.helpers.documents import pack, read_all
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

    name = os.fsdecode("水浒传".encode("gbk"))
    (tmp_path / f"{name}.txt").write_text("一")
    with open(tmp_path / f"{name}.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["二"]}), file)
    assert sorted(read([tmp_path])) == ["一", "二"]
    assert documents.slices_of([tmp_path], DocumentFormat())


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


def test_a_dataset_of_the_hub_is_not_looked_for_on_the_disk():
    told = "hf://org/corpus/zh: is on the hub, which only `rewarm data prepare` streams; fetch it"
    with pytest.raises(UserError, match=told):
        find_files(["hf://org/corpus/zh"])
