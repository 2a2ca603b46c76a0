"""A model directory: written whole or not at all, read a tensor at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save_file as write_safetensors

from tokenization.directories import whole_directory
from trainer.errors import InfrastructureError, UserError
from trainer.model import directory
from trainer.model.directory import Weight, WeightsReader, WeightsWriter, copy_tokenizer


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), limit=st.integers(1, 400))
def test_what_is_written_is_read_back_in_shards_within_the_limit(tmp_path_factory, sizes, limit):
    where = tmp_path_factory.mktemp("weights")
    given = {f"w{number}": torch.randn(size) for number, size in enumerate(sizes)}
    writer = WeightsWriter(where, limit)
    for name, tensor in given.items():
        writer.add(Weight.of(name, tensor))
    writer.close()
    with WeightsReader(where) as reader:
        assert sorted(reader.names) == sorted(given)
        assert all(torch.equal(tensor, given[name]) for name, tensor in reader)
        assert all(reader.shape(name) == list(tensor.shape) for name, tensor in given.items())
    files = sorted(where.glob("*.safetensors"))
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(4 * tensor.numel() for tensor in held.values()) <= limit
    if len(files) > 1:
        index = json.loads((where / directory.INDEX).read_text())
        assert index["metadata"]["total_size"] == 4 * sum(sizes)
        assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
        assert set(index["weight_map"]) == set(given)
    else:
        assert files[0].name == "model.safetensors"


def test_a_view_of_a_larger_tensor_is_written_alone(tmp_path):
    writer = WeightsWriter(tmp_path)
    writer.add(Weight.of("rows", torch.zeros(1000, 100)[:2]))
    writer.close()
    assert (tmp_path / "model.safetensors").stat().st_size < 2000


def test_weights_that_cannot_be_read(tmp_path):
    with pytest.raises(
        UserError, match=r"has neither model.safetensors nor model.safetensors.index.json; convert"
    ):
        WeightsReader(tmp_path)
    (tmp_path / directory.INDEX).write_text("{")
    with pytest.raises(UserError, match=r"index.json: cannot be read .*; copy the model again"):
        WeightsReader(tmp_path)
    (tmp_path / directory.INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(UserError, match=r"gone.safetensors: cannot be read"):
        WeightsReader(tmp_path)
    write_safetensors({"a": torch.zeros(100)}, tmp_path / "gone.safetensors")
    (tmp_path / "gone.safetensors").write_bytes((tmp_path / "gone.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"gone.safetensors: cannot be read"):
        WeightsReader(tmp_path)


def fill(out: Path, error: Exception | None = None) -> None:
    """Fills `out` with a file, or fails in the middle of it."""
    with whole_directory(out) as draft:
        (draft / "file").write_text("all")
        assert not (out / "file").exists()
        if error:
            raise error


def test_a_directory_appears_only_when_it_is_whole(tmp_path):
    fill(tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "all"


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "out", ZeroDivisionError())
    with pytest.raises(InfrastructureError, match=r"out: cannot be written \(.*No space"):
        fill(tmp_path / "out", OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "other").write_text("mine")
    for taken in (tmp_path, tmp_path / "other"):
        words = f"--out: '{taken}' exists and is not empty; give a new directory"
        with pytest.raises(UserError, match=re.escape(words)):
            fill(taken)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_empty_directory_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert (tmp_path / "out" / "file").exists()


def test_a_tokenizers_files_are_copied_and_no_others(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.model", "tokenizer.json", "extension.json", "model.safetensors", "config.json"):
        (source / name).write_bytes(name.encode())
    copy_tokenizer(source, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        name: name.encode() for name in ("tokenizer.model", "tokenizer.json", "extension.json")
    }
    (source / "other.model").write_bytes(b"alone")
    copy_tokenizer(source / "other.model", target)
    assert (target / "tokenizer.model").read_bytes() == b"alone"
    with pytest.raises(UserError, match="holds no tokenizer; give a tokenizer directory"):
        copy_tokenizer(tmp_path, target)
