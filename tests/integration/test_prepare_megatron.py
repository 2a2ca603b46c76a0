"""Parity with the package megatron-core: it reads our shards, and writes the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from tokenization.shards.writer import ShardWriter

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
