"""The choice of an engine: by agreement with the reference, never by trust."""

from __future__ import annotations

import numpy as np
import pytest

from tokenization.errors import UserError
from tokenization.tokenizer import encoder, engines, files, hard_lines
from tokenization.vocabulary import train

TEXT = [f"{index} the quick brown fox 中国人民 法律规定 {'ab' * (index % 5)}" for index in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("\n".join(TEXT))
    train.train_vocabulary([folder / "text.txt"], 340, folder / "out")
    return files.open_tokenizer(folder / "out")


def test_all_engines_agree_on_hard_and_long_lines(tokenizer):
    lines = [*hard_lines.HARD_LINES, *hard_lines.long_lines(), *TEXT]
    truth = engines.split(encoder.reference(tokenizer).encode(lines))
    for name in ("gigatoken", "tokenizers"):
        ids = engines.split(encoder.create_engine(tokenizer, name).encode(lines))
        assert all(np.array_equal(a, b) for a, b in zip(truth, ids, strict=True)), name


def test_the_fastest_is_chosen(tokenizer):
    choice = encoder.choose_engine(tokenizer, TEXT)
    assert (choice.engine.name, choice.dropped) == ("gigatoken", [])


@pytest.mark.parametrize("wrong_on", ["the 中", " " * 7 + "x", "long"])
def test_one_wrong_line_is_enough(tokenizer, monkeypatch, wrong_on):
    real = engines.GigatokenEngine.encode

    def wrong(self, texts):
        rows = engines.split(real(self, texts))
        spoilt = [row[::-1] if text == wrong_on or (wrong_on == "long" and len(text) > 200000) else row
                  for text, row in zip(texts, rows, strict=True)]  # fmt: skip
        return np.concatenate(spoilt), np.array([len(row) for row in spoilt])

    monkeypatch.setattr(engines.GigatokenEngine, "encode", wrong)
    choice = encoder.choose_engine(tokenizer, ["the 中", *TEXT])
    assert choice.engine.name == "sentencepiece"
    assert choice.dropped[0].startswith("gigatoken is not used: its ids differ from sentencepiece's on ")
    with pytest.raises(UserError, match="--engine: 'gigatoken' cannot be the engine"):
        encoder.choose_engine(tokenizer, ["the 中", *TEXT], only="gigatoken")


def test_an_engine_that_fails_is_dropped(tokenizer, monkeypatch):
    def broken(self, text):
        raise RuntimeError("unsupported tokenizer")

    monkeypatch.setattr(engines.GigatokenEngine, "__init__", broken)
    choice = encoder.choose_engine(tokenizer, TEXT[:3])
    assert choice.engine.name == "sentencepiece"
    assert choice.dropped == ["gigatoken is not used: RuntimeError: unsupported tokenizer"]


def test_nothing_to_encode(tokenizer):
    for name in ("gigatoken", "sentencepiece", "tokenizers"):
        ids, lengths = encoder.create_engine(tokenizer, name).encode([])
        assert (ids.size, lengths.size) == (0, 0)
        ids, lengths = encoder.create_engine(tokenizer, name).encode(["", "the", ""])
        assert lengths.tolist()[::2] == [0, 0]
        assert ids.size == lengths[1]


def test_a_model_that_its_library_refuses_is_named(tokenizer, tmp_path):
    twice = type(tokenizer.model)()
    twice.CopyFrom(tokenizer.model)
    twice.pieces.add(piece=tokenizer.pieces[-1])
    (tmp_path / "twice.model").write_bytes(twice.SerializeToString())
    (tmp_path / "none.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"twice\.model: cannot be loaded .*already defined"):
        encoder.reference(files.open_tokenizer(tmp_path / "twice.model"))
    with pytest.raises(UserError, match=r"none\.model: is not a SentencePiece model"):
        files.open_tokenizer(tmp_path / "none.model")


def test_what_gigatoken_remembers_is_dropped_when_it_grows(tokenizer, monkeypatch):
    engine = encoder.create_engine(tokenizer, "gigatoken")
    expected = engine.encode(TEXT)[0]
    held = engine._tokenizer
    monkeypatch.setattr(engines, "_resident_mb", lambda: 1e9)
    assert np.array_equal(engine.encode(TEXT)[0], expected)
    assert engine._tokenizer is not held
    assert np.array_equal(engine.encode(TEXT)[0], expected)
