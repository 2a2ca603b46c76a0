"""Whatever the files of a checkpoint hold, it is loaded as it was saved, or a line names the file."""

import json

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.checkpoints import position, savers
from tests.helpers.fragments import fragment
from tokenization.errors import RewarmError, UserError
from trainer.checkpoint import history
from trainer.checkpoint.manifest import MANIFEST, MARKER, read_checkpoint, verify_checkpoint
from trainer.checkpoint.rank_files import Reader
from trainer.scheduler.state import RunState

RANK_FILE = "rank-00000.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A committed checkpoint's files, by name."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    (one,) = savers(folder)
    one.open_directory(1, needed=1)
    one.save(position(1), [[fragment("w", 0, (2, 2), True, {"weight": torch.arange(4.0)})]])
    assert one.wait() is None
    path = folder / history.name_of(1)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def written(folder, files, *, committed=True):
    """A checkpoint of these files; if `committed`, its checksums are made to fit, as an attacker's would."""
    path = folder / "checkpoints" / history.name_of(1)
    path.mkdir(parents=True, exist_ok=True)
    files = dict(files)
    if committed:
        files[MARKER] = xxhash.xxh3_128_hexdigest(files[MANIFEST]).encode()
    for name, held in files.items():
        (path / name).write_bytes(held)
    return path


def load_all(path):
    """Everything that is done with a checkpoint."""
    history.scan_checkpoints(path.parent)
    checkpoint = read_checkpoint(path)
    assert all(file.parent == path for file in checkpoint.files)
    verify_checkpoint(checkpoint)
    reader = Reader(checkpoint.files)
    for name in reader.pieces:
        reader.whole(name)
    RunState.from_json(checkpoint.manifest.state)


def tolerated(path):
    try:
        load_all(path)
    except RewarmError:
        return


OURS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=5), st.integers(-(2**70), 2**70), st.just([]),
    st.dictionaries(st.sampled_from(["version", "phases", "../x", "w"]), st.integers(), max_size=2),
)  # fmt: skip


@OURS
@given(data=st.data())
def test_a_manifest_that_says_something_else_is_a_line(saved, tmp_path, data):
    tree = json.loads(saved[MANIFEST])
    for name in data.draw(st.lists(st.sampled_from(sorted(tree)), min_size=1, max_size=3)):
        tree[name] = data.draw(VALUES)
    tolerated(written(tmp_path, {**saved, MANIFEST: json.dumps(tree).encode()}))


@OURS
@given(data=st.data(), committed=st.booleans())
def test_damaged_bytes_are_a_line(saved, tmp_path, data, committed):
    name = data.draw(st.sampled_from([MANIFEST, RANK_FILE]))
    held = bytearray(saved[name])
    for _ in range(data.draw(st.integers(1, 4))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    tolerated(written(tmp_path, {**saved, name: bytes(held)}, committed=committed))


@OURS
@given(data=st.data())
def test_a_header_that_says_something_else_is_a_line(saved, tmp_path, data):
    """Shapes that would take all memory, offsets beyond the file, other types."""
    held = saved[RANK_FILE]
    length = int.from_bytes(held[:8], "little")
    header = json.loads(held[8 : 8 + length])
    entry = data.draw(st.sampled_from(sorted(header)))
    if entry == "__metadata__":
        places = st.sampled_from(
            ["{}", "[]", '{"w": [0, 1000000000, 1000000000]}', '{"w": [-5, 4]}', '{"w": 1}', "x"]
        )
        header[entry] = {"places": data.draw(places)}
    else:
        field = data.draw(st.sampled_from(sorted(header[entry])))
        header[entry][field] = data.draw(
            VALUES | st.lists(st.integers(-9, 2**40), max_size=3) | st.sampled_from(["F64", "I8"])
        )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    tolerated(
        written(tmp_path, {**saved, RANK_FILE: len(text).to_bytes(8, "little") + text + held[8 + length :]})
    )


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(saved, tmp_path, name):
    tree = json.loads(saved[MANIFEST])
    tree["files"][name] = [1, "0" * 32]
    with pytest.raises(UserError, match="outside the checkpoint"):
        read_checkpoint(written(tmp_path, {**saved, MANIFEST: json.dumps(tree).encode()}))


def test_a_shape_that_the_file_does_not_hold_takes_no_memory(saved, tmp_path):
    held = saved[RANK_FILE]
    length = int.from_bytes(held[:8], "little")
    header = json.loads(held[8 : 8 + length])
    header["__metadata__"]["places"] = json.dumps({"w": [0, 10**6, 10**6]})
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = tmp_path / RANK_FILE
    file.write_bytes(len(text).to_bytes(8, "little") + text + held[8 + length :])
    with pytest.raises(UserError, match="4 of the 1,000,000,000,000 elements"):
        Reader([file]).whole("w")
