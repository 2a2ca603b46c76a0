"""A corpus and its tokenizer for every test of preparing."""

from __future__ import annotations

import json

import pytest

from tests.helpers.corpus import TEXTS
from tokenization.tokenizer import encoder
from tokenization.vocabulary.train import train_vocabulary


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("\n".join(TEXTS))
    train_vocabulary([folder / "text.txt"], 360, folder / "out")
    return folder / "out"


@pytest.fixture(autouse=True)
def short_lines(monkeypatch):
    """The lines of 1 MB have their own test; here they would only take time."""
    monkeypatch.setattr(encoder, "long_lines", lambda: [])


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(6):
        lines = [json.dumps({"text": text}) for text in TEXTS[file * 50 : (file + 1) * 50]]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
