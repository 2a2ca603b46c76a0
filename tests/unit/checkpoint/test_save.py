"""A save ends committed, or undone and told on every rank; the newest two are never pruned."""

import errno
import os
import subprocess
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.checkpoints import fragments, position, save, save_with, savers
from tokenization.disk import BLOCK, checksum
from tokenization.errors import InfrastructureError
from trainer.checkpoint import history, rank_files
from trainer.checkpoint.manifest import MANIFEST, verify_checkpoint
from trainer.storage import disk


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_two_ranks_commit_once_both_have_written(folder, asynchronous):
    ranks = savers(folder, 2, asynchronous=asynchronous)
    ranks[0].open_directory(1, needed=1)
    first = threading.Thread(target=ranks[0].save, args=(position(1, 2), [fragments(0)]))
    first.start()
    first.join(0.2)
    assert history.scan_checkpoints(folder)[0] == []  # rank 1 has not written yet
    ranks[1].save(position(1, 2), [fragments(1)])
    first.join()
    assert [one.wait() for one in ranks] == [None, None]
    good, broken = history.scan_checkpoints(folder)
    assert broken == []
    assert [path.name for path in good[0].files] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert set(good[0].manifest.weights) == {"w0", "w1"}
    assert verify_checkpoint(good[0]) == []
    assert ranks[0].save_s > 0


def test_asynchronous_saves_hold_the_weights_of_their_moments_in_the_same_memory(folder):
    (one,) = savers(folder, asynchronous=True)
    live = fragments()
    places = set()
    for step in (1, 2):
        one.open_directory(step, needed=1)
        live[0].tensors["weight"].fill_(step)
        one.save(position(step), [live])
        one.wait_for_snapshot()
        live[0].tensors["weight"].fill_(99)  # training goes on
        assert one.wait() is None
        places.add(one._buffer.reserve(1).data_ptr())
    assert len(places) == 1
    for checkpoint, step in zip(history.scan_checkpoints(folder)[0], (1, 2), strict=True):
        assert rank_files.Reader(checkpoint.files).whole("w0").tolist() == [step] * 4


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rank_that_cannot_write_undoes_the_save_on_all_ranks(folder, asynchronous, monkeypatch):
    save(folder, 1, ranks=2)
    write = rank_files.write_rank_file

    def failing(path, mine):
        if path.name == "rank-00001.safetensors" and "00000002" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, mine)

    monkeypatch.setattr(rank_files, "write_rank_file", failing)
    ranks = savers(folder, 2, asynchronous=asynchronous)
    failures = save_with(ranks, 2)
    assert failures[0] == failures[1]
    assert "rank 1: " in failures[0]
    assert "rank-00001.safetensors: No space left on device" in failures[0]
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001"]  # the room is given back
    assert ranks[0].last_good().endswith("step-00000001")
    assert save_with(ranks, 3) == [None, None]  # the next save is as if nothing had been


def test_ranks_at_different_positions_do_not_commit(folder):
    ranks = savers(folder, 2)
    ranks[0].open_directory(1, needed=1)
    other = threading.Thread(target=ranks[1].save, args=(position(1, 2, tokens=7), [fragments(1)]))
    other.start()
    ranks[0].save(position(1, 2), [fragments(0)])
    other.join()
    assert ["disagree with rank 0" in (one.wait() or "") for one in ranks] == [True, True]
    assert history.scan_checkpoints(folder)[0] == []


def test_shares_with_a_hole_do_not_commit(folder):
    (one,) = savers(folder)
    one.open_directory(1, needed=1)
    fragment = fragments()[0]
    fragment.shape = (5,)
    one.save(position(1), [[fragment]])
    assert "w0: 4 of 5 elements" in (one.wait() or "")
    assert history.scan_checkpoints(folder)[0] == []


def test_a_rank_that_is_gone_ends_the_save_of_the_others(folder):
    def alone(value):
        raise RuntimeError("Connection closed by peer")

    (one,) = savers(folder)
    one.gather = alone
    one.open_directory(1, needed=1)
    one.save(position(1), [fragments()])
    assert one.wait() == "Connection closed by peer"
    assert history.scan_checkpoints(folder)[0] == []


def test_leftovers_of_saves_cut_short_are_cleared_and_told(folder, log_lines):
    save(folder, 1)
    for step in (2, 3):
        (folder / history.name_of(step)).mkdir()
        (folder / history.name_of(step) / "rank-00001.safetensors").write_text("half")
    (one,) = savers(folder)
    one.open_directory(2, needed=1)
    assert list((folder / history.name_of(2)).iterdir()) == []
    assert not (folder / history.name_of(3)).exists()
    assert [line for line in log_lines if "removed unfinished checkpoint" in line] == log_lines
    assert len(log_lines) == 2
    assert len(history.scan_checkpoints(folder)[0]) == 1


@pytest.mark.parametrize("kind", ["file", "dangling link", "damaged checkpoint"])
def test_what_has_the_name_of_the_next_checkpoint_makes_way(folder, kind, log_lines):
    save(folder, 1)
    place = folder / history.name_of(2)
    if kind == "file":
        place.write_text("x")
    elif kind == "dangling link":
        place.symlink_to(folder / "nowhere")
    else:
        save(folder, 2)
        (place / MANIFEST).unlink()
    assert save(folder, 2) == [None]
    assert any(str(place) in line for line in log_lines)
    assert [one.manifest.step for one in history.scan_checkpoints(folder)[0]] == [1, 2]


def test_a_save_that_cannot_fit_is_refused_and_the_last_good_one_is_known(folder):
    save(folder, 1)
    (one,) = savers(folder)
    with pytest.raises(InfrastructureError, match="are free"):
        one.open_directory(2, needed=2**60)
    assert one.last_good().endswith("step-00000001")
    assert not (folder / "step-00000002").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_disk_full_in_mid_save_is_one_line_and_the_last_good_one_stays(small_disk, asynchronous):
    folder = small_disk / "checkpoints"
    assert save(folder, 1) == [None]
    (one,) = savers(folder, asynchronous=asynchronous)
    one.open_directory(2, needed=1)  # someone else fills the disk after the check
    large = fragments()
    large[0].shape, large[0].tensors["weight"] = (1 << 20,), torch.zeros(1 << 20)
    one.save(position(2), [large])
    failure = one.wait() or ""
    assert "rank-00000.safetensors: No space left on device" in failure
    assert "\n" not in failure
    good, broken = history.scan_checkpoints(folder)
    assert [checkpoint.manifest.step for checkpoint in good] == [1]
    assert broken == []
    assert verify_checkpoint(good[0]) == []
    assert save(folder, 3) == [None]


def test_pruning_keeps_the_newest_and_the_milestones(folder):
    for step in range(1, 7):  # tokens 100 … 600; a milestone every 250
        save(folder, step, keep_every=250)
    kept = [one.manifest.step for one in history.scan_checkpoints(folder)[0]]
    assert kept == [1, 3, 5, 6]  # first of 0–249, of 250–499, of 500–749, and the newest two


def test_what_cannot_be_pruned_does_not_undo_the_save(folder, monkeypatch, log_lines):
    for step in (1, 2):
        save(folder, step)

    def denied(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("shutil.rmtree", denied)
    assert save(folder, 3) == [None]
    assert "cannot be removed (Permission denied)" in log_lines[0]
    assert [one.manifest.step for one in history.scan_checkpoints(folder)[0]] == [
        2,
        3,
    ]  # its marker went first


def test_pruning_does_not_count_a_damaged_one_that_was_passed_over(folder):
    for step in (1, 2, 5):
        save(folder, step, keep_last=3)
    history.quarantine(folder, step=2)  # 5 turned out to be damaged
    save(folder, 4)
    assert [one.manifest.step for one in history.scan_checkpoints(folder)[0]] == [2, 4]
    assert (folder / "damaged-step-00000005").is_dir()


@given(
    tokens=st.lists(st.integers(0, 10**6), unique=True, max_size=30).map(sorted),
    keep_last=st.integers(0, 10),
    keep_every=st.none() | st.integers(1, 10**5),
)
def test_the_newest_two_always_stay(tokens, keep_last, keep_every):
    steps = [(number, at) for number, at in enumerate(tokens)]
    gone = history.to_prune(steps, keep_last, keep_every)
    assert not set(gone) & {step for step, _ in steps[-max(2, keep_last) :]}
    if keep_every is None:
        assert len(steps) - len(gone) == min(len(steps), max(2, keep_last))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("sizes", [[], [0], [1], [4096], [BLOCK - 1, 1], [3, 2 * BLOCK, 4097]])
def test_a_file_holds_its_parts_one_after_another_on_any_file_system(tmp_path, monkeypatch, sizes, direct):
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", 0)
    parts = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]
    size, proof = disk.write_direct(tmp_path / "file", parts)
    assert (tmp_path / "file").read_bytes() == b"".join(part.numpy().tobytes() for part in parts)
    assert size == sum(sizes)
    assert proof == checksum(tmp_path / "file")


def test_what_lies_beside_the_ranks_files_is_proved_too(tmp_path):
    """config.json, which `rewarm export` and a run with this checkpoint as its base go by."""
    (one,) = savers(tmp_path)
    one.open_directory(3, needed=1)
    config = tmp_path / "step-00000003" / "config.json"
    config.write_text('{"hidden_size": 32}')
    one.save(position(3), [fragments()])
    assert one.wait() is None
    ((checkpoint,), _) = history.scan_checkpoints(tmp_path)
    assert [path.name for path in checkpoint.files] == ["rank-00000.safetensors"]
    assert verify_checkpoint(checkpoint) == []
    config.write_text('{"hidden_size": 64}')
    (line,) = verify_checkpoint(checkpoint)
    assert str(config) in line
    config.unlink()
    _, (line,) = history.scan_checkpoints(tmp_path)
    assert str(config) in line
