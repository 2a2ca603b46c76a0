"""A checkpoint counts when it is whole, is named when it is not, and the newest two are never pruned."""

import os
import threading
from dataclasses import replace

import pytest
import torch
from fragments import Fragment
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint import commit
from trainer.errors import InfrastructureError


def manifest(step: int, world_size: int = 1) -> commit.Manifest:
    return commit.Manifest(
        version=commit.VERSION,
        step=step,
        tokens=step * 100,
        world_size=world_size,
        stage=2,
        files={},
        weights={},
        adam_step=step,
        loss_scale={},
        state={"step": step},
        baseline={},
        recipe="name: x",
        versions={},
    )


def saver(folder, rank=0, world_size=1, **changes) -> commit.Saver:
    options = {"keep_last": 2, "keep_every": None, "asynchronous": False, "say": lambda line: None, **changes}
    return commit.Saver(folder, rank=rank, world_size=world_size, **options)


def fragments(rank: int = 0) -> list[Fragment]:
    return [Fragment(f"w{rank}", 0, (4,), True, {"weight": torch.arange(4.0) + rank})]


def save(folder, step: int, **changes) -> None:
    one = saver(folder, **changes)
    one.prepare(step, needed=1)
    one.save(manifest(step), fragments())
    assert one.wait() is None


@pytest.mark.parametrize("asynchronous", [False, True])
def test_two_ranks_commit_once_both_have_signed(tmp_path, asynchronous):
    ranks = [saver(tmp_path, rank, 2, asynchronous=asynchronous) for rank in (0, 1)]
    ranks[0].prepare(1, needed=1)
    first = threading.Thread(target=ranks[0].save, args=(manifest(1, 2), fragments(0)))
    first.start()
    first.join(0.2)
    assert commit.scan(tmp_path)[0] == []  # rank 1 has not written yet
    ranks[1].save(manifest(1, 2), fragments(1))
    first.join()
    assert [one.wait() for one in ranks] == [None, None]
    good, broken = commit.scan(tmp_path)
    assert broken == []
    assert [path.name for path in good[0].files] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert set(good[0].manifest.weights) == {"w0", "w1"}
    assert commit.verify(good[0]) == []


def test_asynchronous_save_holds_the_weights_of_its_moment(tmp_path):
    one = saver(tmp_path, asynchronous=True)
    one.prepare(1, needed=1)
    live = fragments()
    one.save(manifest(1), live)
    live[0].tensors["weight"].fill_(99)  # training goes on at once
    assert one.wait() is None
    checkpoint = commit.read(tmp_path / "step-00000001")
    from trainer.checkpoint.portable import Reader

    assert Reader(checkpoint.files).whole("w0").tolist() == [0, 1, 2, 3]


def test_failure_of_another_rank_ends_the_save(tmp_path):
    one = saver(tmp_path, 0, 2)
    one.prepare(1, needed=1)
    (tmp_path / "step-00000001" / "rank-00001.failed").write_text("disk on fire")
    one.save(manifest(1, 2), fragments())
    assert "disk on fire" in (one.wait() or "")
    assert commit.scan(tmp_path)[0] == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "COMMITTED").unlink(), "never committed"),
        (lambda path: (path / "COMMITTED").write_text("{"), "cannot be read"),
        (lambda path: (path / "COMMITTED").write_text("[]"), "cannot be read"),
        (lambda path: (path / "rank-00000.safetensors").unlink(), "rank-00000.safetensors"),
        (lambda path: os.truncate(path / "rank-00000.safetensors", 50), "has 50 bytes"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, damage, said):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-00000002")
    good, broken = commit.scan(tmp_path)
    assert [one.manifest.step for one in good] == [1]
    assert len(broken) == 1
    assert said in broken[0]
    assert (tmp_path / "step-00000002").exists()  # passed over, not deleted


def test_every_flipped_byte_is_found(tmp_path):
    save(tmp_path, 1)
    checkpoint = commit.read(tmp_path / "step-00000001")
    file = checkpoint.files[0]
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        damaged = commit.verify(checkpoint)
        assert len(damaged) == 1
        assert "rank-00000.safetensors" in damaged[0]


def test_leftover_of_a_save_cut_short_is_written_again_and_told(tmp_path):
    said = []
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "rank-00001.json").write_text("an old signature")
    one = saver(tmp_path, say=said.append)
    one.prepare(1, needed=1)
    assert list((tmp_path / "step-00000001").iterdir()) == []
    assert "cut short" in said[0]


def test_a_save_that_cannot_fit_is_refused_and_the_last_good_one_is_known(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InfrastructureError, match="are free"):
        saver(tmp_path).prepare(2, needed=2**60)
    assert saver(tmp_path).last_good().endswith("step-00000001")
    assert not (tmp_path / "step-00000002").exists()


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path):
    for step in range(1, 7):  # tokens 100 … 600; a milestone every 250
        save(tmp_path, step, keep_every=250)
    kept = [one.manifest.step for one in commit.scan(tmp_path)[0]]
    assert kept == [1, 3, 5, 6]  # first of 0–249, of 250–499, of 500–749, and the newest two


@given(
    tokens=st.lists(st.integers(0, 10**6), unique=True, max_size=30).map(sorted),
    keep_last=st.integers(0, 10),
    keep_every=st.none() | st.integers(1, 10**5),
)
def test_the_newest_two_always_stay(tokens, keep_last, keep_every):
    steps = [(number, at) for number, at in enumerate(tokens)]
    gone = commit.prunable(steps, keep_last, keep_every)
    assert not set(gone) & {step for step, _ in steps[-max(2, keep_last) :]}
    if keep_every is None:
        assert len(steps) - len(gone) == min(len(steps), max(2, keep_last))


def test_another_version_is_refused(tmp_path):
    one = saver(tmp_path)
    one.prepare(1, needed=1)
    one.save(replace(manifest(1), version=commit.VERSION + 1), fragments())
    assert one.wait() is None
    assert "version" in commit.scan(tmp_path)[1][0]
