"""Whatever the files of a shard hold, reading it gives ids of its vocabulary or one line about the file."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenization.errors import RewarmError, UserError
from tokenization.prepare.overlap import find_overlap
from tokenization.shards.store import inspect_shard, open_tokens, verify_shard
from tokenization.shards.writer import ShardWriter


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """The bytes of a shard's three files."""
    folder = tmp_path_factory.mktemp("shard")
    with ShardWriter(folder / "a", vocab_size=300, tokenizer="f" * 32, eos_id=2) as writer:
        for length in (5, 40, 1, 17):
            writer.add_document(np.append(np.arange(3, 3 + length), 2), 3 * length)
    return {ending: (folder / f"a{ending}").read_bytes() for ending in (".json", ".bin", ".idx")}


def read_all(prefix):
    """Everything that is done with a shard; nothing but our own errors may come of it."""
    store = open_tokens(prefix)
    ids = store.read(0, min(store.tokens, 100))
    assert ids.size == 0 or int(ids.max()) < store.vocab_size
    for place in range(min(store.tokens, 50)):
        store.documents_of(place, 1)
    for number in range(min(store.documents, 50)):
        store.document_start(number)
    inspect_shard(prefix)
    find_overlap([prefix], [prefix])
    verify_shard(prefix)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=5),
    st.integers(-(2**70), 2**70),
    st.just([]),
    st.just({}),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_side_file_that_says_something_else_is_a_line(shard, tmp_path, data):
    side = json.loads(shard[".json"])
    for name in data.draw(st.lists(st.sampled_from(sorted(side)), min_size=1, max_size=3)):
        side[name] = data.draw(VALUES)
    write(tmp_path, {**shard, ".json": json.dumps(side).encode()})
    tolerated(tmp_path / "a")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_a_line(shard, tmp_path, data):
    ending = data.draw(st.sampled_from([".json", ".bin", ".idx"]))
    held = bytearray(shard[ending])
    for _ in range(data.draw(st.integers(1, 4))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 1, 8, len(held)]))
    write(tmp_path, {**shard, ending: bytes(held[: len(held) - cut])})
    tolerated(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "null", '"a"', "{", "[" * 100_000, "\x00", '{"version": [1]}']
)
def test_a_side_file_of_another_kind_is_a_line(shard, tmp_path, text):
    write(tmp_path, {**shard, ".json": text.encode()})
    with pytest.raises(UserError, match=r"a\.json"):
        open_tokens(tmp_path / "a")


@pytest.mark.parametrize("ending", [".json", ".bin", ".idx"])
def test_a_folder_or_a_dangling_link_in_place_of_a_file_is_a_line(shard, tmp_path, ending):
    write(tmp_path, {name: held for name, held in shard.items() if name != ending})
    (tmp_path / f"a{ending}").mkdir()
    with pytest.raises(UserError):
        read_all(tmp_path / "a")
    (tmp_path / f"a{ending}").rmdir()
    (tmp_path / f"a{ending}").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError):
        read_all(tmp_path / "a")


def write(folder, files):
    for ending, held in files.items():
        (folder / f"a{ending}").write_bytes(held)


def tolerated(prefix):
    try:
        read_all(prefix)
    except RewarmError:
        return
