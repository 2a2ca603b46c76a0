"""A shard of Megatron-LM is used as it is, if it can be of the tokenizer and keeps documents apart."""

import struct

import numpy as np
import pytest
import sentencepiece

from tests.helpers import vocabularies
from tokenization.errors import UserError
from tokenization.shards.adopt import adopt_shard
from tokenization.shards.format import MAGIC
from tokenization.shards.store import open_tokens, verify_shard
from tokenization.tokenizer.files import open_tokenizer
from trainer.cli.main import main

TEXTS = ["the 中国", "中国人 the", "a"]


@pytest.fixture
def tokenizer(tmp_path):
    return vocabularies.saved(tmp_path / "tokenizer", vocabularies.BASE)


@pytest.fixture
def documents(tokenizer):
    encoder = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    return [[*encoder.encode(text), 2] for text in TEXTS]


def megatron(prefix, documents, *, code=8, bounds=None, version=1):
    """The two files as Megatron-LM's IndexedDatasetBuilder lays them out, written from its description."""
    dtype = {4: "<i4", 8: "<u2"}[code]
    lengths = np.array([len(document) for document in documents], "<i4")
    starts = (
        np.concatenate([[0], np.cumsum(lengths[:-1], dtype="<i8")]).astype("<i8") * np.dtype(dtype).itemsize
    )
    bounds = np.arange(len(documents) + 1, dtype="<i8") if bounds is None else np.array(bounds, "<i8")
    head = MAGIC + struct.pack("<QBQQ", version, code, len(documents), len(bounds))
    prefix.with_suffix(".idx").write_bytes(head + lengths.tobytes() + starts.tobytes() + bounds.tobytes())
    prefix.with_suffix(".bin").write_bytes(np.concatenate(documents).astype(dtype).tobytes())
    return prefix


def test_an_adopted_shard_is_read_as_one_of_ours_and_its_files_stay(tmp_path, tokenizer, documents, capsys):
    prefix = megatron(tmp_path / "x", documents)
    before = [prefix.with_suffix(ending).read_bytes() for ending in (".idx", ".bin")]
    assert main(["data", "adopt", str(prefix), "--tokenizer", str(tokenizer)]) == 0
    assert 'it begins: " the 中国' in capsys.readouterr().out.replace('"the', '" the')
    assert [prefix.with_suffix(ending).read_bytes() for ending in (".idx", ".bin")] == before
    verify_shard(prefix)
    store = open_tokens(prefix)
    assert (store.documents, store.tokens) == (3, sum(map(len, documents)))
    assert store.tokenizer == open_tokenizer(tokenizer).fingerprint
    # SentencePiece puts a space in front of each document.
    assert store.utf8_bytes == sum(len(text.encode()) + 1 for text in TEXTS)
    with pytest.raises(UserError, match="can be used as it is"):
        adopt_shard(prefix, tokenizer)
    other = vocabularies.saved(tmp_path / "other", vocabularies.ADD)
    with pytest.raises(UserError, match=r"made with tokenizer \S+, but .*give the tokenizer that"):
        adopt_shard(prefix, other)


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        (lambda held: [held[0], held[1][:-1]], {}, "1 documents that do not end with EOS, id 2"),
        (lambda held: [*held, [999, 2]], {}, "holds the id 999"),
        (lambda held: held, {"code": 4}, "dtype code 4"),
        (lambda held: held, {"bounds": [0, 2, 3]}, "3 sequences in 2 documents"),
        (lambda held: held, {"version": 2}, "is not an index of Megatron-LM's format"),
    ],
)
def test_what_cannot_be_used_is_a_line(tmp_path, tokenizer, documents, change, options, line):
    prefix = megatron(tmp_path / "x", change(documents), **options)
    with pytest.raises(UserError, match=line):
        adopt_shard(prefix, tokenizer)
    assert not prefix.with_suffix(".json").exists()


@pytest.mark.parametrize("ending", [".idx", ".bin"])
def test_a_file_that_is_cut_short_or_missing_is_a_line(tmp_path, tokenizer, documents, ending):
    file = megatron(tmp_path / "x", documents).with_suffix(ending)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError):
        adopt_shard(tmp_path / "x", tokenizer)
    file.unlink()
    with pytest.raises(UserError, match=rf"x\{ending}: is missing; (give the path|copy it)"):
        adopt_shard(tmp_path / "x", tokenizer)
