"""Preparing a corpus: the same bytes however it is run, every record counted, nothing half looks whole."""

from __future__ import annotations

import errno
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from tests.helpers.corpus import TEXTS, bytes_of, decoded, run, write
from tokenization.errors import InfrastructureError, UserError, UserErrors
from tokenization.prepare.prepare import prepare
from tokenization.prepare.workers import held_out
from tokenization.shards.store import open_tokens, verify_shard
from tokenization.tokenizer import encoder, engines, files


def test_every_document_in_order_with_sentencepieces_ids(tmp_path, corpus, tokenizer):
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS
    opened = files.open_tokenizer(tokenizer)
    ids = [index for row in engines.split(encoder.reference(opened).encode(TEXTS)) for index in [*row, 2]]
    store = open_tokens(tmp_path / "out" / "a")
    assert store.read(0, store.tokens).tolist() == ids
    assert (made.documents, made.tokens) == (300, len(ids))
    assert made.utf8_bytes == store.utf8_bytes == sum(len(text.encode()) for text in TEXTS)
    assert store.tokenizer == opened.fingerprint
    assert made.engine == "gigatoken"
    verify_shard(tmp_path / "out" / "a")


@pytest.mark.parametrize("options", [{}, {"validation": 0.2}, {"dedup": True, "validation": 0.1}])
def test_workers_and_parts_do_not_change_the_bytes(tmp_path, corpus, tokenizer, options):
    (corpus / "6.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[::3]))
    for index in (3, 1, 2):  # as an array job may run them
        run(corpus, tokenizer, tmp_path / "array" / "a", part=(index, 3), **options)
    for index in (1, 2, 3):
        run(corpus, tokenizer, tmp_path / "two" / "a", part=(index, 3), workers=2, **options)
    assert bytes_of(tmp_path / "array") == bytes_of(tmp_path / "two")
    run(corpus, tokenizer, tmp_path / "one" / "a", **options)
    for prefix in ("a", "a-validation") if "validation" in options else ("a",):
        whole, parts = (open_tokens(tmp_path / name / prefix) for name in ("one", "array"))
        assert np.array_equal(whole.read(0, whole.tokens), parts.read(0, parts.tokens))
        assert whole.documents == parts.documents


def test_validation_is_stable_when_files_are_added(tmp_path, corpus, tokenizer):
    made = run(corpus, tokenizer, tmp_path / "out" / "a", validation=Fraction(1, 5))
    train, validation = (decoded(tmp_path / "out" / name, tokenizer) for name in ("a", "a-validation"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert (len(train), len(validation)) == (made.documents, made.validation_documents)
    assert 30 <= len(validation) <= 90  # 60 expected, four standard deviations of 7
    (corpus / "0-before.jsonl").write_text('{"text": "something new"}\n')
    run(corpus, tokenizer, tmp_path / "more" / "a", validation=Fraction(1, 5))
    more = decoded(tmp_path / "more" / "a-validation", tokenizer)
    assert [text for text in more if text in TEXTS] == validation


def test_the_validation_share_is_what_was_asked_for():
    taken = held_out([f"document {index}" for index in range(20000)], Fraction("0.005"))
    assert 60 <= taken.sum() <= 140  # 100 expected, four standard deviations of 10
    assert not held_out(["a"], Fraction(0)).any()


def test_the_input_folder_may_hold_the_output(tmp_path, corpus, tokenizer):
    write(corpus, "5a.jsonl", [None] * 20)
    run(corpus, tokenizer, corpus / "tokens", validation=0.1)
    first = bytes_of(corpus)
    assert (corpus / "tokens.rejects.jsonl").is_file()
    assert run(corpus, tokenizer, corpus / "tokens", validation=0.1).finished_before == 1
    run(corpus, tokenizer, corpus / "again", validation=0.1)
    assert {name.replace("again", "tokens"): data for name, data in bytes_of(corpus).items()} == first
    for number in (1, 2):
        run(corpus, tokenizer, corpus / "array", part=(number, 2), validation=0.1)
    one, array = (open_tokens(corpus / name) for name in ("tokens", "array"))
    assert np.array_equal(one.read(0, one.tokens), array.read(0, array.tokens))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "is the name of a folder, not a prefix"),
        ("..", "is the name of a folder"),
        ("/", "is the name of a folder"),
        ("", "is the name of a folder"),
        ("data/.", "is the name of a folder"),
        ("text.txt/zh", "cannot be created: its parent path .*text.txt is a file"),
        ("x" * 300, "has a name of more than 200 bytes"),
    ],
)
def test_an_out_that_names_no_files_is_refused_before_the_work(
    tmp_path, tokenizer, monkeypatch, out, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"--out: '.*' {message}"):
        prepare(["text.txt"], tokenizer, out, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, corpus, tokenizer, monkeypatch, name):
    opened = Path.open

    def closed(self, *arguments, **options):
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(Permission denied\)"):
        run(corpus, tokenizer, tmp_path / "out" / "a")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, corpus, tokenizer, monkeypatch, workers):
    real = os.fsync
    calls = 0

    def full(handle):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match=r"No space left.*; make room there$"):
        run(corpus, tokenizer, tmp_path / "out" / "a", workers=workers)
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(UserError):
        open_tokens(tmp_path / "out" / "a")
    run(corpus, tokenizer, tmp_path / "out" / "a")
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS


def test_an_engine_that_disagrees_is_dropped_with_a_line(tmp_path, corpus, tokenizer, monkeypatch):
    real = engines.GigatokenEngine.encode

    def wrong(self, texts):
        ids, lengths = real(self, texts)
        return np.where(ids == ids.max(), 3, ids), lengths

    monkeypatch.setattr(engines.GigatokenEngine, "encode", wrong)
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert made.engine == "sentencepiece"
    assert made.notes[0].startswith("gigatoken is not used: its ids differ from sentencepiece's on ")
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS
    with pytest.raises(UserError, match="--engine: 'gigatoken' cannot be the engine"):
        run(corpus, tokenizer, tmp_path / "out" / "b", engine="gigatoken")


def test_engines_by_name_give_the_same_bytes(tmp_path, corpus, tokenizer):
    for engine in ("gigatoken", "sentencepiece", "tokenizers"):
        assert run(corpus, tokenizer, tmp_path / engine / "a", engine=engine).engine == engine
    assert bytes_of(tmp_path / "gigatoken") == bytes_of(tmp_path / "sentencepiece")
    assert bytes_of(tmp_path / "gigatoken") == bytes_of(tmp_path / "tokenizers")
    with pytest.raises(UserError, match="is not one of"):
        run(corpus, tokenizer, tmp_path / "x" / "a", engine="fast")


def test_a_directory_with_only_tokenizer_json(tmp_path, corpus, tokenizer):
    only = tmp_path / "only"
    only.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (only / name).write_bytes((tokenizer / name).read_bytes())
    run(corpus, only, tmp_path / "json" / "a")
    run(corpus, tokenizer, tmp_path / "model" / "a")
    left, right = (open_tokens(tmp_path / name / "a") for name in ("json", "model"))
    assert np.array_equal(left.read(0, left.tokens), right.read(0, right.tokens))
    assert left.tokenizer == files.open_tokenizer(only).fingerprint


def test_a_byte_level_tokenizer(tmp_path, corpus):
    """As GPT-2, LLaMA-3 and SmolLM have it: no SentencePiece model, text split before it is merged."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    folder = tmp_path / "bytes"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="has no EOS token"):
        run(corpus, folder, tmp_path / "out" / "a")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (corpus / "odd.jsonl").write_text(
        json.dumps({"text": "!\0 !  \0"}) + "\n" + json.dumps({"text": "ends  "})
    )
    run(corpus, folder, tmp_path / "out" / "a")
    store = open_tokens(tmp_path / "out" / "a")
    expected = [index for text in [*TEXTS, "!\0 !  \0", "ends  "] for index in [*made.encode(text).ids, 0]]
    assert store.read(0, store.tokens).tolist() == expected
    assert store.eos_id == 0


def test_special_tokens_in_a_text_are_text(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "</s> the <s> fox <unk>"}))
    for engine in ("gigatoken", "sentencepiece", "tokenizers"):
        prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / engine, engine=engine, progress=False)
        store = open_tokens(tmp_path / engine)
        assert (store.read(0, store.tokens) == 2).sum() == 1


def test_all_wrong_options_are_told_at_once(tmp_path, corpus, tokenizer):
    with pytest.raises(UserErrors) as caught:
        run(corpus, tokenizer, tmp_path / "a", workers=0, part=(3, 2), validation=1.5, max_rejects=-1)
    assert len(caught.value.problems) == 4
