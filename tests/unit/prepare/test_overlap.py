"""Validation text that is trained on is found, whatever the pieces, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import vocabularies
from tokenization.errors import UserError, UserErrors
from tokenization.prepare import overlap, shingles
from tokenization.prepare.clean import write_clean
from tokenization.prepare.overlap import find_overlap
from tokenization.prepare.prepare import prepare
from tokenization.prepare.shingles import BINS, NO_HASH, Runs
from tokenization.shards.store import open_tokens
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer
from trainer.cli.main import main

EOS = 2
TOKENS = st.lists(st.integers(3, 9), max_size=30)


def shard(prefix, documents, tokenizer="a" * 64, vocab_size=32_000):
    with ShardWriter(prefix, vocab_size=vocab_size, tokenizer=tokenizer, eos_id=EOS) as writer:
        for document in documents:
            writer.add_document(np.append(document, EOS), 3 * len(document))
    return str(prefix)


@given(st.lists(TOKENS, min_size=1, max_size=6), st.integers(1, 14))
def test_equal_runs_have_equal_hashes_and_no_run_crosses_documents(documents, length):
    ids = np.array([token for document in documents for token in [*document, EOS]])
    runs = Runs(ids, np.array([len(document) + 1 for document in documents]))
    hashes, owners = runs.of_length(length)
    expected = [
        (tuple([*document, EOS][first : first + length]), number)
        for number, document in enumerate(documents)
        for first in range(len(document) + 2 - length)
    ]
    assert owners.tolist() == [number for _, number in expected]
    by_run = {}
    for (run, _), value in zip(expected, hashes.tolist(), strict=True):
        assert by_run.setdefault(run, value) == value
    assert len(set(by_run.values())) == len(by_run)
    whole = {}
    for document, value in zip(documents, runs.whole().tolist(), strict=True):
        assert whole.setdefault(tuple(document), value) == value
    assert len(set(whole.values())) == len(whole)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_estimated_similarity_is_near_the_true_one(share):
    random, size = np.random.default_rng(0), 4000
    one = random.integers(3, 32_000, size)
    other = np.concatenate([one[: int(size * share)], random.integers(3, 32_000, size - int(size * share))])
    both = Runs(np.concatenate([one, other]), np.array([size, size])).signatures(5)
    assert both.shape == (2, BINS)
    assert (both != NO_HASH).all()
    true = share / (2 - share)  # what they share of all runs that either has
    # The deviation of a mean over 128 bins is 0.044 at most.
    assert shingles.similarity(both[:1], both[1:])[0] == pytest.approx(true, abs=0.15)


def planted(random):
    """Training and validation documents, and what was planted in which of the latter."""
    train = [random.integers(3, 32_000, random.integers(30, 400)) for _ in range(300)]
    validation = [random.integers(3, 32_000, random.integers(30, 400)) for _ in range(60)]
    for place in range(10):
        validation[place] = train[7 * place].copy()
    for place in range(10, 20):  # every 50th token is another one
        validation[place] = train[7 * place].copy()
        validation[place][25::50] = 3
    for place in range(20, 30):  # most of a training document among text of its own
        validation[place] = np.concatenate([random.integers(3, 32_000, 9), train[7 * place]])
    for place in range(30, 40):  # a passage that is too short to count
        validation[place] = np.concatenate([validation[place], train[7 * place][:20]])
    return train, validation


@pytest.mark.parametrize(("block", "workers"), [(1 << 20, 1), (1000, 1), (150, 2)])
def test_all_that_is_planted_is_found_and_nothing_else(tmp_path, monkeypatch, block, workers):
    """With small blocks most documents are cut; copies of those are found by their runs alone."""
    monkeypatch.setattr(overlap, "PIECE", block)
    train, validation = planted(np.random.default_rng(1))
    parts = [shard(tmp_path / "a", train[:150]), shard(tmp_path / "b", train[150:])]
    (found,) = find_overlap(parts, [shard(tmp_path / "v", validation)], workers=workers)
    assert {one.document for one in found.found} == set(range(30))
    if block > 400:
        for one in found.found[:10]:
            place = 7 * one.document
            assert one.exact == f"{parts[place // 150]} document {place % 150}"
        assert all(one.exact is None for one in found.found[10:])
        assert all(one.nearest.endswith(f" {7 * one.document % 150}") for one in found.found[10:20])
    planted_runs = sum(len(validation[place]) - 12 for place in range(10)) / found.tokens
    assert planted_runs < found.grams < 0.7
    assert found.to_text().splitlines()[0].startswith(f"{tmp_path / 'v'}: ")


def test_equal_validation_documents_are_all_found_and_short_ones_too(tmp_path):
    copy = np.arange(3, 300)
    train = shard(tmp_path / "t", [[3, 4], copy, np.arange(400, 700)])
    (found,) = find_overlap([train], [shard(tmp_path / "v", [copy, copy, [3, 4], [3, 5], []])])
    assert [(one.document, one.exact is not None) for one in found.found] == [(0, True), (1, True), (2, True)]


def test_sets_are_told_apart_and_an_empty_source_has_nothing(tmp_path):
    train, one = shard(tmp_path / "t", [np.arange(3, 99)]), shard(tmp_path / "v", [np.arange(3, 99)])
    other, empty = shard(tmp_path / "w", [np.arange(200, 300)]), shard(tmp_path / "e", [])
    sets = find_overlap([train, empty], [other, one, empty])
    assert [len(found.found) for found in sets] == [0, 1, 0]
    assert [found.grams for found in sets] == [0.0, 1.0, 0.0]


def test_shards_of_different_tokenizers_are_refused(tmp_path):
    train, other = shard(tmp_path / "t", [[5]]), shard(tmp_path / "v", [[5]], tokenizer="b" * 64)
    with pytest.raises(UserErrors, match="their ids cannot be compared"):
        find_overlap([train], [other])


@pytest.fixture
def tokenizer(tmp_path):
    return vocabularies.saved(tmp_path / "tokenizer", vocabularies.BASE)


def texts(tmp_path):
    """A hundred documents, and the same with a letter more."""
    random = np.random.default_rng(3)
    words = ["the", "中国", "t", "h", "e", "中", "国", "a"]
    own = ["".join(random.choice(words, 60)) for _ in range(100)]
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [*own, *(f"{text}a" for text in own)]
    (folder / "all.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_prepare_writes_a_validation_set_without_what_is_trained_on(tmp_path, tokenizer):
    folder, out = texts(tmp_path), tmp_path / "data" / "zh"
    options = {"txt": "lines", "validation": 0.2, "progress": False}
    told = prepare([folder], tokenizer, out, **options, clean=True)
    whole, clean = open_tokens(f"{out}-validation"), open_tokens(f"{out}-validation-clean")
    assert 0 < clean.documents < whole.documents / 2
    assert any("documents are trained on as they are" in note for note in told.notes)
    (after,) = find_overlap([out], [f"{out}-validation-clean"])
    assert after.found == []
    # Both copies of a text in the validation set are of no harm, and are kept.
    assert prepare([folder], tokenizer, out, **options, clean=True).finished_before == 1
    kept = clean.utf8_bytes / clean.documents
    assert kept == pytest.approx(whole.utf8_bytes / whole.documents, rel=0.1)


@pytest.mark.parametrize(
    ("more", "line"), [({"part": (1, 2)}, "with --part"), ({"validation": 0}, "without")]
)
def test_cleaning_that_would_have_no_effect_is_refused(tmp_path, tokenizer, more, line):
    options = {"validation": 0.1, "clean": True, "progress": False, **more}
    with pytest.raises(UserErrors, match=line):
        prepare([texts(tmp_path)], tokenizer, tmp_path / "out", **options)


def test_nothing_is_overwritten_without_a_word(tmp_path, tokenizer):
    known = open_tokenizer(tokenizer)
    documents = [np.full(20, token) for token in (260, 262)]
    made = {"tokenizer": known.fingerprint, "vocab_size": known.size}
    train = shard(tmp_path / "t", documents[:1], **made)
    (found,) = find_overlap([train], [shard(tmp_path / "v", documents, **made)])
    out = write_clean(found, known)
    assert open_tokens(out).documents == 1
    with pytest.raises(UserError, match="holds shards already"):
        write_clean(found, known)
    write_clean(found, known, overwrite=True)


def test_the_command_names_documents_and_their_share(tmp_path, capsys):
    train = shard(tmp_path / "t", [np.arange(3, 99)])
    words = ["data", "overlap", "--train", train, "--validation", shard(tmp_path / "v", [np.arange(3, 99)])]
    assert main([*words, "--workers", "1"]) == 0
    assert f"document 0 (97 tokens): equal to {train} document 0" in capsys.readouterr().out
    assert main([*words, "--workers", "1", "--write-clean"]) == 2
    assert "--tokenizer is needed for --write-clean" in " ".join(
        capsys.readouterr().err.replace(":", "").split()
    )


@settings(max_examples=30, deadline=None)
@given(train=st.lists(TOKENS, max_size=5), validation=st.lists(TOKENS, max_size=5))
def test_whatever_the_documents_copies_are_found(tmp_path_factory, train, validation):
    folder = tmp_path_factory.mktemp("shards")
    source, held_out = shard(folder / "t", train), shard(folder / "v", validation)
    (found,) = find_overlap([source], [held_out])
    exact = {one.document for one in found.found if one.exact}
    assert exact == {place for place, document in enumerate(validation) if document in train}
