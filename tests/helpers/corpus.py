"""A small corpus in two languages, and what a job has made of it."""

from __future__ import annotations

import json

import numpy as np

from tokenization.prepare.prepare import prepare
from tokenization.shards.store import open_tokens
from tokenization.tokenizer import encoder, files

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "中国",
    "人民",
    "法律",
    "规定",
    "应当",
]


def sentence(index):
    return " ".join(WORDS[(index * 7 + place * place) % len(WORDS)] for place in range(3 + index % 9))


TEXTS = [f"{index} {sentence(index)}" for index in range(300)]


def run(corpus, tokenizer, out, **options):
    return prepare([corpus], tokenizer, out, progress=False, **options)


def decoded(prefix, tokenizer):
    """The texts of a store, by SentencePiece alone."""
    store = open_tokens(prefix)
    ids = store.read(0, store.tokens)
    ends = np.flatnonzero(ids == 2) + 1
    processor = encoder.reference(files.open_tokenizer(tokenizer))._processor
    assert ends.size == store.documents
    rows = np.split(ids, ends)[:-1]
    return [processor.decode(row[:-1].tolist()) for row in rows]


def bytes_of(folder):
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix in (".bin", ".idx") or (path.suffix == ".json" and "prepared" not in path.name)
    }


def write(folder, name, texts, **more):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))
