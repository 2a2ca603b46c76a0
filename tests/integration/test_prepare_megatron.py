"""Parity with the package megatron-core: it reads our shards, writes the same bytes, and we adopt its own."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece

from tests.helpers import vocabularies
from tokenization.shards.adopt import adopt_shard
from tokenization.shards.store import open_tokens, verify_shard
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer

indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")

pytestmark = pytest.mark.slow  # its import alone takes many seconds

DOCUMENTS = [[5, 6, 7, 2], [2], [900, 31999, 2], [8] * 70 + [2]]


@pytest.fixture(params=[32000, 70000], ids=["uint16", "int32"])
def vocab_size(request):
    return request.param


def test_megatron_reads_what_we_write(tmp_path, vocab_size):
    with ShardWriter(tmp_path / "ours", vocab_size=vocab_size, tokenizer="t", eos_id=2) as writer:
        for document in DOCUMENTS:
            writer.add_document(document)
    read = indexed_dataset.IndexedDataset(str(tmp_path / "ours"))
    assert [read[index].tolist() for index in range(len(read))] == DOCUMENTS
    assert read.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert read.index.dtype == (np.uint16 if vocab_size == 32000 else np.int32)


def test_our_bytes_are_megatrons(tmp_path, vocab_size):
    builder = indexed_dataset.IndexedDatasetBuilder(
        str(tmp_path / "theirs.bin"), dtype=indexed_dataset.DType.optimal_dtype(vocab_size)
    )
    with ShardWriter(tmp_path / "ours", vocab_size=vocab_size, tokenizer="t", eos_id=2) as writer:
        for document in DOCUMENTS:
            writer.add_document(document)
            builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for ending in (".bin", ".idx"):
        assert (tmp_path / f"ours{ending}").read_bytes() == (tmp_path / f"theirs{ending}").read_bytes()


def test_what_megatron_writes_is_adopted_as_it_is(tmp_path):
    folder, texts = (
        vocabularies.saved(tmp_path / "tokenizer", vocabularies.BASE),
        ["the 中国", "中国人 the", "a"],
    )
    tokenizer = open_tokenizer(folder)
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    encoder = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    documents = [[*encoder.encode(text), tokenizer.eos_id] for text in texts]
    for document in documents:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    adopt_shard(tmp_path / "theirs", folder)
    verify_shard(tmp_path / "theirs")
    store = open_tokens(tmp_path / "theirs")
    assert (store.documents, store.tokens) == (3, sum(map(len, documents)))
    assert store.tokenizer == tokenizer.fingerprint
