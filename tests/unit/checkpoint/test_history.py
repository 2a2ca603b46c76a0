"""A checkpoint counts when it is whole, and is named when it is not."""

import json
import os
from dataclasses import asdict

import pytest
import xxhash

from tests.helpers.checkpoints import manifest, save
from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint import history
from trainer.checkpoint import manifest as commit
from trainer.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_VERSION,
    MARKER,
    commit_checkpoint,
    verify_checkpoint,
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def replaced_by_a_file(path):
    path.rename(path.with_name("elsewhere"))
    path.write_text("x")


def replaced_by_a_dangling_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "COMMITTED").unlink(), "never committed"),
        (lambda path: (path / "COMMITTED").write_text(""), "was committed (COMMITTED) with"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json: cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json: has checksum"),
        (lambda path: (path / "rank-00000.safetensors").unlink(), "rank-00000.safetensors: cannot be read"),
        (replaced_by_a_file, "cannot be read (Not a directory)"),
        (replaced_by_a_dangling_link, "never committed"),
        (lambda path: path.rename(path.with_name("step-00000007")), "holds step 2, so its name is wrong"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(folder, damage, said):
    save(folder, 1)
    save(folder, 2)
    damage(folder / "step-00000002")
    good, broken = history.scan_checkpoints(folder)
    assert [one.manifest.step for one in good] == [1]
    assert said in broken[0]


@pytest.mark.parametrize("file", ["COMMITTED", "manifest.json", "rank-00000.safetensors"])
def test_every_truncation_and_every_flipped_byte_of_every_file_is_found_and_named(folder, file):
    save(folder, 1)
    path = folder / "step-00000001"
    whole = (path / file).read_bytes()

    def found() -> list[str]:
        good, broken = history.scan_checkpoints(folder)
        return [*broken, *(line for one in good for line in verify_checkpoint(one))]

    assert found() == []
    for place in range(len(whole)):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            (path / file).write_bytes(damaged)
            lines = found()
            assert len(lines) == 1
            assert str(path / file) in lines[0] or file == "COMMITTED"
            assert "COMMITTED" in lines[0] or file != "COMMITTED"


def test_a_directory_that_cannot_be_read_is_named(folder, monkeypatch):
    save(folder, 1)
    save(folder, 2)
    read = commit.Path.read_bytes

    def denied(path):
        if "step-00000002" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(commit.Path, "read_bytes", denied)
    good, broken = history.scan_checkpoints(folder)
    assert [one.manifest.step for one in good] == [1]
    assert broken == [f"{folder / 'step-00000002' / 'COMMITTED'}: cannot be read (Permission denied)"]


def test_the_newest_one_gone_altogether_is_told(folder):
    save(folder, 1)
    save(folder, 2)
    (folder / "step-00000002").rename(folder.parent / "elsewhere")
    good, broken = history.scan_checkpoints(folder)
    assert [one.manifest.step for one in good] == [1]
    assert broken == [f"{folder / 'step-00000002'}: was committed and is missing"]


def test_no_directory_holds_nothing_and_one_that_cannot_be_read_is_not_taken_for_that(folder):
    assert history.scan_checkpoints(folder) == ([], [])
    folder.symlink_to(folder.parent / "a disk that is not mounted")
    with pytest.raises(InfrastructureError, match="cannot be read"):
        history.scan_checkpoints(folder)
    folder.unlink()
    folder.write_text("x")
    with pytest.raises(UserError, match="cannot be read"):
        history.scan_checkpoints(folder)


def test_that_something_was_committed_is_known_even_when_all_is_gone(folder):
    assert not history.has_committed(folder)
    save(folder, 1)
    assert history.has_committed(folder)
    folder.rename(folder.parent / "elsewhere")
    assert history.has_committed(folder)


def test_steps_are_ordered_as_numbers(folder):
    for step in (99_999_999, 100_000_000):
        save(folder, step)
    assert [one.manifest.step for one in history.scan_checkpoints(folder)[0]] == [99_999_999, 100_000_000]


def test_a_checkpoint_that_is_not_kept_any_more_names_those_beside_it(folder):
    for step in (4, 8, 12):
        save(folder, step)  # which keeps the last two
    line = r"step-00000002: does not hold .*, such as step-00000008, step-00000012 beside it$"
    with pytest.raises(UserError, match=line):
        history.find_checkpoint(folder / "step-00000002")


def test_what_is_newer_than_the_one_used_is_set_aside_and_never_comes_back(folder):
    for step in (1, 2, 3):
        save(folder, step, keep_last=3)
    os.truncate(folder / "step-00000002" / "manifest.json", 5)
    (folder / "step-00000004").mkdir()  # a save that was cut short
    lines = history.quarantine(folder, step=1)
    assert [line.split(": ")[0] for line in lines] == [
        str(folder / name) for name in ("step-00000002", "step-00000003")
    ]
    assert [one.manifest.step for one in history.scan_checkpoints(folder)[0]] == [1]
    save(folder, 2)
    history.quarantine(folder, step=1)
    names = sorted(path.name for path in folder.glob("damaged-*"))
    assert names == ["damaged-step-00000002", "damaged-step-00000002-1", "damaged-step-00000003"]


def test_another_version_is_refused(folder):
    save(folder, 1)
    path = folder / "step-00000001"
    text = json.dumps({**asdict(manifest(1)), "version": MANIFEST_VERSION + 1})
    (path / MANIFEST).write_text(text)
    (path / MARKER).write_text(xxhash.xxh3_128_hexdigest(text.encode()))
    assert "version" in history.scan_checkpoints(folder)[1][0]


def test_a_file_that_is_not_what_was_written_is_not_committed(folder):
    path = folder / "step-00000001"
    path.mkdir(parents=True)
    (path / "rank-00000.safetensors").write_bytes(b"half")
    whole = manifest(1, files={"rank-00000.safetensors": (8, "0")})
    with pytest.raises(InfrastructureError, match="has 4 bytes, but 8 were written"):
        commit_checkpoint(path, whole)
    assert not (path / MARKER).exists()
