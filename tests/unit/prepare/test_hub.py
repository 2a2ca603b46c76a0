"""Preparing a dataset of the hub: its rows in order, no finished part twice, errors in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from tests.helpers.corpus import TEXTS, bytes_of, decoded
from tokenization.errors import InfrastructureError, UserError
from tokenization.prepare.prepare import prepare
from tokenization.text import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = [TEXTS[start : start + 60] for start in range(0, 300, 60)]


@pytest.fixture(autouse=True)
def _nothing_is_open():
    hub._open.cache_clear()
    yield
    hub._open.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache as `hf download` leaves it, with a dataset in five files and two configurations."""
    root = tmp_path / "cache" / "datasets--org--corpus"
    snapshot = root / "snapshots" / COMMIT
    for name, files in (("zh", FILES), ("en", [[TEXTS[0], None, TEXTS[1]]])):
        (snapshot / name).mkdir(parents=True)
        for number, texts in enumerate(files):
            table = pyarrow.table({"id": [0] * len(texts), "text": texts})
            parquet.write_table(table, snapshot / name / f"{number}.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("zh", "en"))
    (snapshot / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


class Online:
    """A hub with a dataset in five files; its network fails at a row that is read again, after the sample."""

    def __init__(self):
        self.read, self.fails, self.asked = [], None, []

    def dataset_info(self, name, revision=None):
        return SimpleNamespace(sha=COMMIT)

    def load_dataset_builder(self, name, config, **options):
        self.asked.append((name, config, options))
        root = f"hf://datasets/{name}@{options['revision']}"
        self.config = SimpleNamespace(data_files={"train": [f"{root}/{number}.jsonl" for number in range(5)]})
        return self

    def as_streaming_dataset(self, split):
        assert split == "train"

        def rows(files):
            for number in files:
                for row, text in enumerate(FILES[number]):
                    if (number, row) == self.fails and (number, row) in self.read:
                        raise ConnectionError("Connection reset by peer")
                    self.read.append((number, row))
                    yield {"text": text, "id": row}

        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": list(range(len(FILES)))})


@pytest.fixture
def online(monkeypatch):
    made = Online()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(datasets, "load_dataset_builder", made.load_dataset_builder)
    return made


def stream(name, tokenizer, out, **options):
    return prepare([name], tokenizer, out, progress=False, **options)


def test_a_cached_dataset_is_read_offline_as_its_files_would_be(tmp_path, tokenizer, cache):
    made = stream(
        "hf://org/corpus/zh", tokenizer, tmp_path / "out" / "a", validation=0.1, dedup=True, workers=2
    )
    assert (made.parts, made.documents + made.validation_documents) == (5, 300)
    assert f"read hf://org/corpus@{COMMIT}/zh:train" in made.notes
    prepare([cache / "zh"], tokenizer, tmp_path / "files" / "a", validation=0.1, dedup=True, progress=False)
    for name in ("a", "a-validation"):
        assert decoded(tmp_path / "out" / name, tokenizer) == decoded(tmp_path / "files" / name, tokenizer)


def test_rows_without_text_are_counted(tmp_path, tokenizer, cache):
    made = stream("hf://org/corpus/en:train", tokenizer, tmp_path / "a")
    assert (made.documents, made.rejects) == (2, {"is null": 1})
    assert made.reject_files == {"is null": ["en:train#0"]}


def test_a_restart_reads_only_the_parts_that_are_not_finished(tmp_path, tokenizer, online):
    stream("hf://org/corpus", tokenizer, tmp_path / "whole" / "a")
    online.fails, online.read = (3, 30), []
    with pytest.raises(
        InfrastructureError, match=r"hf://org/corpus@\w+:train: the hub does not answer \(Conn"
    ):
        stream("hf://org/corpus", tokenizer, tmp_path / "out" / "a", engine="sentencepiece")
    online.fails, online.read = None, []
    made = stream("hf://org/corpus", tokenizer, tmp_path / "out" / "a", engine="sentencepiece")
    assert (made.finished_before, made.documents) == (3, 300)
    # All are read for the sample, and one row for the names of the columns.
    assert [sum(number == file for number, _ in online.read) for file in range(5)] == [61, 60, 60, 120, 120]
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS
    for name, _, options in online.asked:
        assert (name, options["revision"]) == ("org/corpus", COMMIT)
        assert "trust_remote_code" not in options


def test_files_come_before_the_hub_and_parts_may_be_done_apart(tmp_path, tokenizer, online, corpus):
    for index in (2, 1):
        inputs = ["hf://org/corpus", corpus]
        prepare(inputs, tokenizer, tmp_path / "out" / "a", part=(index, 2), progress=False)
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS + TEXTS


def test_another_revision_is_another_job(tmp_path, tokenizer, online):
    stream("hf://org/corpus", tokenizer, tmp_path / "a")
    with pytest.raises(UserError, match="was written by another job, which differs in the files"):
        stream(f"hf://org/corpus@{'f' * 40}", tokenizer, tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "hf://org/other",
            "hf://org/other:train: is not cached, and HF_HUB_OFFLINE forbids to ask the hub; fetch",
        ),
        ("hf://org/corpus@v2", "hf download --repo-type dataset org/corpus --revision v2"),
        ("hf://org/corpus/fr", r"corpus@\w+/fr:train: cannot be read \(BuilderConfig 'fr' not found"),
        ("hf://org/corpus/zh:test", r'zh:test: cannot be read \(.*"?test"?'),
        ("hf://org/corpus/zh/1", "is not a dataset of the hub; write it like hf://org/name/config:train"),
        ("hf://", "is not a dataset of the hub"),
        ("hf://org/corpus:train[:1%]", "is not a dataset of the hub"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(tmp_path, tokenizer, cache, name, told):
    with pytest.raises(UserError, match=told) as caught:
        stream(name, tokenizer, tmp_path / "a")
    assert len(str(caught.value).splitlines()) == 1


def test_a_column_that_is_missing_is_refused_with_those_that_are_there(tmp_path, tokenizer, online):
    with pytest.raises(UserError, match="--text-field: 'content' is not a column; there are text, id"):
        stream("hf://org/corpus", tokenizer, tmp_path / "a", text_field="content")


def test_a_folder_of_the_same_name_is_not_read_in_its_place(tmp_path, tokenizer, online, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("org/corpus").mkdir(parents=True)
    with pytest.raises(UserError, match="would be read from the folder org/corpus here"):
        stream("hf://org/corpus", tokenizer, tmp_path / "a")


@pytest.mark.parametrize("name", ["../../secret.jsonl", "{secret}"])
def test_a_dataset_that_names_files_elsewhere_is_refused(tmp_path, tokenizer, cache, name):
    secret = cache.parents[1] / "secret.jsonl"
    secret.write_text('{"text": "secret"}\n')
    named = name.format(secret=secret)
    (cache / "README.md").write_text(f"---\nconfigs:\n- config_name: zh\n  data_files: {named}\n---\n")
    with pytest.raises(UserError, match=r"zh:train: names .*secret.jsonl, which is not a file of"):
        stream("hf://org/corpus/zh", tokenizer, tmp_path / "a")


def test_a_script_of_a_dataset_is_never_run(tmp_path, tokenizer, cache):
    mark = tmp_path / "mark"
    for path in cache.iterdir():
        if path.name == "README.md":
            path.unlink()
    for script in (cache / "corpus.py", cache / f"{COMMIT}.py"):
        script.write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(UserError, match=r"cannot be read \(Dataset scripts are no longer supported"):
        stream("hf://org/corpus", tokenizer, tmp_path / "a")
    assert not mark.exists()
