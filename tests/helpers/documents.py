"""All documents of some files, and how a file is packed."""

from __future__ import annotations

import gzip

import zstandard

from tokenization.text import documents, records


def read_all(paths, format, block_bytes=documents.BLOCK_BYTES):
    texts, rejects = [], []
    for block in documents.blocks(documents.slices_of(paths, format, block_bytes), format, block_bytes):
        batch = records.read_records(block, format)
        assert [len(text.encode()) for text in batch.texts] == batch.sizes
        texts += batch.texts
        rejects += batch.rejects
    return texts, [(reject.why, line) for reject, line in records.number(rejects)]


def pack(data, packed):
    if packed == ".gz":
        return gzip.compress(data)
    if packed == ".zst":  # two frames, as parallel compressors write them
        half = len(data) // 2
        return b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))
    return data
