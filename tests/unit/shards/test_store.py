"""Token shards: what is written is read back, in parts as in one, and nothing damaged passes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.errors import InfrastructureError, UserError
from tokenization.shards import writer as shard_writer
from tokenization.shards.format import part_prefix
from tokenization.shards.store import find_parts, inspect_shard, open_tokens, verify_shard
from tokenization.shards.writer import ShardWriter

EOS = 2


def write(prefix, documents, *, vocab_size=100, tokenizer="tok", eos_id=EOS):
    with ShardWriter(prefix, vocab_size=vocab_size, tokenizer=tokenizer, eos_id=eos_id) as writer:
        for document in documents:
            writer.add_document(document, utf8_bytes=3 * len(document))


def test_three_documents_by_hand(tmp_path):
    write(tmp_path / "a", [[5, 6, 7], [], [8, 9]])
    store = open_tokens(tmp_path / "a")
    assert store.read(0, 8).tolist() == [5, 6, 7, 2, 2, 8, 9, 2]
    assert store.read(0, 8).dtype == np.uint16
    assert (store.documents, store.tokens, store.utf8_bytes) == (3, 8, 15)
    assert (store.tokenizer, store.vocab_size, store.eos_id) == ("tok", 100, 2)
    # (8 - 1) // 3 = 2 samples; the second begins with the token that the first ends with
    assert store.samples(3) == 2
    assert store.read_samples([1, 0], 3).tolist() == [[2, 2, 8, 9], [5, 6, 7, 2]]
    assert store.read_samples([0], 7).dtype == np.int32


def test_the_index_by_hand(tmp_path):
    write(tmp_path / "a", [[5, 6, 7], [8]])
    assert (tmp_path / "a.bin").read_bytes() == bytes([5, 0, 6, 0, 7, 0, 2, 0, 8, 0, 2, 0])
    little = lambda number, size: number.to_bytes(size, "little")  # noqa: E731
    assert (tmp_path / "a.idx").read_bytes() == (
        b"MMIDIDX\x00\x00" + little(1, 8) + little(8, 1) + little(2, 8) + little(3, 8)
        + little(4, 4) + little(2, 4)  # lengths
        + little(0, 8) + little(8, 8)  # offsets in bytes
        + little(0, 8) + little(1, 8) + little(2, 8)  # documents
    )  # fmt: skip


def test_eos_is_added_once(tmp_path):
    write(tmp_path / "a", [[5, EOS], [6]])
    assert open_tokens(tmp_path / "a").read(0, 4).tolist() == [5, 2, 6, 2]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65535, np.uint16), (65536, np.int32), (200000, np.int32)])
def test_two_bytes_below_65536_pieces(tmp_path, vocab_size, dtype):
    write(tmp_path / "a", [[vocab_size - 1]], vocab_size=vocab_size)
    store = open_tokens(tmp_path / "a")
    assert store.read(0, 1).dtype == dtype
    assert store.read(0, 2).tolist() == [vocab_size - 1, 2]


documents = st.lists(st.lists(st.integers(3, 99), max_size=12), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(documents=documents, data=st.data())
def test_parts_read_as_one_stream(tmp_path_factory, documents, data):
    folder = tmp_path_factory.mktemp("parts")
    parts = data.draw(st.integers(1, 4))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), min_size=parts - 1, max_size=parts - 1)))
    bounds = [0, *cuts, len(documents)]
    for part in range(parts):
        write(part_prefix(folder / "a", part, parts), documents[bounds[part] : bounds[part + 1]])
    stream = [token for document in documents for token in [*document, EOS]]
    store = open_tokens(folder / "a")
    assert (store.tokens, store.documents) == (len(stream), len(documents))
    start = data.draw(st.integers(0, len(stream)))
    count = data.draw(st.integers(0, len(stream) - start))
    assert store.read(start, count).tolist() == stream[start : start + count]
    seq_len = data.draw(st.integers(1, 9))
    rows = store.read_samples(np.arange(store.samples(seq_len)), seq_len)
    expected = [stream[j * seq_len : (j + 1) * seq_len + 1] for j in range((len(stream) - 1) // seq_len)]
    assert rows.tolist() == expected


def test_outside_the_store(tmp_path):
    write(tmp_path / "a", [[5, 6, 7]])
    store = open_tokens(tmp_path / "a")
    with pytest.raises(IndexError):
        store.read(1, 4)
    with pytest.raises(IndexError):
        store.read_samples([1], 3)
    with pytest.raises(IndexError):
        store.read_samples([-1], 1)


def test_an_empty_source_has_no_samples(tmp_path):
    write(tmp_path / "a", [])
    store = open_tokens(tmp_path / "a")
    assert (store.tokens, store.samples(4), store.read(0, 0).size) == (0, 0, 0)
    verify_shard(tmp_path / "a")


@pytest.mark.parametrize(
    ("ids", "lengths"),
    [([5, 2], [3]), ([5, 6], [2]), ([100, 2], [2]), ([-1, 2], [2]), ([5, 2], [2, 0])],
    ids=["lengths beyond the ids", "no EOS", "id above the vocabulary", "negative id", "empty document"],
)
def test_the_writer_refuses_what_is_no_document(tmp_path, ids, lengths):
    writer = ShardWriter(tmp_path / "a", vocab_size=100, tokenizer="tok", eos_id=EOS)
    with pytest.raises(ValueError):
        writer.add_documents(np.array(ids), np.array(lengths))
    writer.discard()


def test_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    write(tmp_path / "a", [[5, 6]])
    write(tmp_path / "other" / "b", [[5, 6]])
    write(tmp_path / "c", [[5, 7]])
    write(tmp_path / "d", [[5, 6]], tokenizer="another")
    a, b, c, d = (open_tokens(tmp_path / name).fingerprint for name in ("a", "other/b", "c", "d"))
    assert a == b
    assert len({a, c, d}) == 3


@pytest.mark.parametrize("ending", [".bin", ".idx", ".json"])
def test_a_missing_file_is_named(tmp_path, ending):
    write(tmp_path / "a", [[5, 6]])
    (tmp_path / f"a{ending}").unlink()
    with pytest.raises(UserError, match=rf"a\{ending}: .*missing"):
        open_tokens(tmp_path / "a")


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_truncated_file_is_named(tmp_path, ending):
    write(tmp_path / "a", [[5, 6]])
    path = tmp_path / f"a{ending}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"a\{ending}: has"):
        open_tokens(tmp_path / "a")


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_verify_names_the_file_with_one_wrong_bit(tmp_path, ending):
    for part in range(2):
        write(part_prefix(tmp_path / "a", part, 2), [[5, 6]])
    verify_shard(tmp_path / "a")
    path = tmp_path / f"a-00001-of-00002{ending}"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"a-00001-of-00002\{ending}: is damaged"):
        verify_shard(tmp_path / "a")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 99}'])
def test_a_broken_side_file_is_named(tmp_path, text):
    write(tmp_path / "a", [[5]])
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        open_tokens(tmp_path / "a")


def test_a_missing_part_is_named(tmp_path):
    for part in (0, 2):
        write(part_prefix(tmp_path / "a", part, 3), [[5]])
    with pytest.raises(UserError, match=r"a-00001-of-00003\.json: is missing.* --part 2/3"):
        open_tokens(tmp_path / "a")


def test_a_shard_without_a_side_file_is_finished_or_adopted(tmp_path):
    write(tmp_path / "a", [[5]])
    (tmp_path / "a.json").unlink()
    adopt = f"`rewarm data adopt {tmp_path / 'a'} --tokenizer TOKENIZER`"
    with pytest.raises(UserError, match=re.escape(adopt)):
        open_tokens(tmp_path / "a")
    (tmp_path / "a.idx").unlink()
    with pytest.raises(UserError, match=r"finish it with `rewarm data prepare`$"):
        open_tokens(tmp_path / "a")


@pytest.mark.parametrize("name", ["zh.bin", "zh.idx", "zh.json", "en.bin", "en-00001-of-00002.idx"])
def test_a_file_in_place_of_a_prefix_names_the_prefix(tmp_path, name):
    write(tmp_path / "zh", [[5]])
    for part in range(2):
        write(part_prefix(tmp_path / "en", part, 2), [[5]])
    with pytest.raises(UserError, match=rf"give the prefix {tmp_path / name[:2]}, without the ending$"):
        open_tokens(tmp_path / name)


def test_a_misspelt_prefix_names_those_of_its_folder(tmp_path):
    for name in ("zh-web", "zh-web-validation", "en-web", "law"):
        write(tmp_path / name, [[5]])
    (tmp_path / "zh-web.prepared.json").touch()
    with pytest.raises(UserError, match=f"correct the prefix: {tmp_path} holds zh-web, en-web, "):
        open_tokens(tmp_path / "zh-wbe")
    with pytest.raises(UserError, match=r"make them with `rewarm data prepare`$"):
        open_tokens(tmp_path / "nowhere" / "zh")


def test_two_generations_of_parts_are_refused(tmp_path):
    write(tmp_path / "a", [[5]])
    write(part_prefix(tmp_path / "a", 0, 2), [[5]])
    with pytest.raises(UserError, match="one shard and 2 parts at once"):
        find_parts(tmp_path / "a")
    with pytest.raises(UserError, match="has no token shards"):
        find_parts(tmp_path / "b")


def test_parts_of_two_tokenizers_are_refused(tmp_path):
    write(part_prefix(tmp_path / "a", 0, 2), [[5]])
    write(part_prefix(tmp_path / "a", 1, 2), [[5]], tokenizer="another")
    with pytest.raises(UserError, match=r"a-00001-of-00002\.json: tokenizer: 'another' is not 'tok'"):
        open_tokens(tmp_path / "a")


def test_an_error_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path / "a", vocab_size=100, tokenizer="tok", eos_id=EOS)
    with contextlib.suppress(RuntimeError), writer:
        writer.add_document([5])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_shard_does_not_open(tmp_path):
    writer = ShardWriter(tmp_path / "a", vocab_size=100, tokenizer="tok", eos_id=EOS)
    writer.add_document([5])
    with pytest.raises(UserError, match="has no token shards"):
        open_tokens(tmp_path / "a")
    writer.close()
    assert open_tokens(tmp_path / "a").tokens == 2


def test_a_second_writer_of_one_shard_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "_LOCK_TRIES", 1)
    writer = ShardWriter(tmp_path / "a", vocab_size=100, tokenizer="tok", eos_id=EOS)
    with pytest.raises(UserError, match="being written by another process"):
        ShardWriter(tmp_path / "a", vocab_size=100, tokenizer="tok", eos_id=EOS)
    writer.add_document([5])
    writer.close()
    verify_shard(tmp_path / "a")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_never_leaves_a_shard_that_looks_whole(tmp_path, monkeypatch, call):
    """Whichever sync or rename fails, a shard either opens and verifies or is not there."""
    for fails_at in range(8):
        folder = tmp_path / str(fails_at)
        calls = 0
        real = getattr(os, call)

        def flaky(*args, real=real, fails_at=fails_at):
            nonlocal calls
            calls += 1
            if calls == fails_at + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        write(folder / "a", [[7, 8]])
        monkeypatch.setattr(os, call, flaky)
        try:
            write(folder / "a", [[5, 6, 7]])
        except InfrastructureError as error:
            assert "No space left" in str(error)  # noqa: PT017 - the disk may also never fail
        monkeypatch.setattr(os, call, real)
        if (folder / "a.json").exists():
            verify_shard(folder / "a")
        write(folder / "a", [[5, 6, 7]])
        assert open_tokens(folder / "a").read(0, 4).tolist() == [5, 6, 7, 2]
        assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "a.idx", "a.json"]


def test_the_side_file_counts(tmp_path):
    write(tmp_path / "a", [[5, 6], [7]])
    side = json.loads((tmp_path / "a.json").read_text())
    assert {key: side[key] for key in ("documents", "tokens", "utf8_bytes", "version")} == {
        "documents": 2,
        "tokens": 5,
        "utf8_bytes": 9,
        "version": 1,
    }


def test_inspection_by_hand(tmp_path):
    for part, held in enumerate([[[5, 6], [7]], [], [[8, 9, 10, 11]]]):
        write(part_prefix(tmp_path / "a", part, 3), held)
    seen = inspect_shard(tmp_path / "a")
    assert (seen.parts, seen.documents, seen.tokens, seen.utf8_bytes) == (3, 3, 10, 21)
    assert (seen.shortest, seen.longest, seen.dtype) == (2, 5, "uint16")
    assert seen.to_json()["fingerprint"] == open_tokens(tmp_path / "a").fingerprint
    assert "3 of 2 to 5 tokens, mean 3.3" in seen.to_text()
    assert "2.100 per token" in seen.to_text()


@given(
    ids=st.lists(st.integers(0, 60_000), min_size=8, max_size=40),
    vocab_size=st.integers(3, 60_000),
    start=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_an_id_beyond_the_vocabulary_is_named_with_its_shard(tmp_path_factory, ids, vocab_size, start):
    """Whatever wrote it: no model has a row for it."""
    folder = tmp_path_factory.mktemp("shard")
    write(folder / "a", [[0] * (len(ids) - 1)], vocab_size=vocab_size)
    np.array(ids, np.uint16).tofile(folder / "a.bin")
    store = open_tokens(folder / "a")
    for read, span in (
        (lambda: store.read(start, 5).tolist(), ids[start : start + 5]),
        (lambda: store.read_samples([0], 5)[0].tolist(), ids[:6]),
    ):
        if max(span) < vocab_size:
            assert read() == span
        else:
            with pytest.raises(
                UserError, match=rf"a: holds the token id {max(span)}, and its vocabulary has"
            ):
                read()
