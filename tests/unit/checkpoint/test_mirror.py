"""Committed checkpoints are copied elsewhere, the marker last, and what goes wrong there stops no run."""

import threading

import fsspec
import pytest

from tests.helpers.checkpoints import save
from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint import history
from trainer.checkpoint.manifest import MARKER, read_checkpoint
from trainer.checkpoint.mirror import Mirror, check_mirror

PATIENCE = 30.0


def step(folder, number):
    assert save(folder / "checkpoints", number, keep_last=9) == [None]
    return folder / "checkpoints" / history.name_of(number)


def test_a_copy_is_the_checkpoint_and_a_run_can_go_on_from_it(tmp_path):
    mirror = Mirror(f"file://{tmp_path}/away", "zh")
    for number in (1, 2):
        mirror.add(step(tmp_path / "run", number))
        mirror.finish(PATIENCE)
    good, broken = history.scan_checkpoints(tmp_path / "away" / "zh" / "checkpoints")
    assert [one.manifest.step for one in good] == [1, 2]
    assert broken == []
    assert read_checkpoint(good[0].path).manifest == read_checkpoint(step_path(tmp_path, 1)).manifest


def step_path(folder, number):
    return folder / "run" / "checkpoints" / history.name_of(number)


def test_an_object_store_gets_the_marker_last(tmp_path):
    path = step(tmp_path, 3)
    mirror = Mirror("memory://bucket/runs", "zh")
    order = []
    put, pipe = mirror._files.put_file, mirror._files.pipe_file
    mirror._files.put_file = lambda local, there: (order.append(there), put(local, there))
    mirror._files.pipe_file = lambda there, held: (order.append(there), pipe(there, held))
    try:
        mirror.add(path)
        mirror.finish(PATIENCE)
    finally:
        del mirror._files.put_file, mirror._files.pipe_file
    assert [one.rpartition("/")[2] for one in order][-1] == MARKER
    store = fsspec.filesystem("memory")
    found = {
        one.rpartition("/")[2] for one in store.ls(f"/bucket/runs/zh/checkpoints/{path.name}", detail=False)
    }
    assert found == {file.name for file in path.iterdir()}


def test_a_store_that_fails_is_a_line_and_the_next_copy_is_tried(tmp_path, log_lines):
    mirror = Mirror(f"file://{tmp_path}/away", "zh")
    copy, failing = mirror._copy, [True]

    def broken(path):
        if failing.pop() if failing else False:
            raise ConnectionError("no route to host")
        copy(path)

    mirror._copy = broken
    mirror.add(step(tmp_path / "run", 1))
    mirror.finish(PATIENCE)
    mirror.add(step(tmp_path / "run", 2))
    mirror.finish(PATIENCE)
    (line,) = [line for line in log_lines if "is not copied" in line]
    assert line.endswith("step-00000001 is not copied (no route to host); the local one is whole")
    good, _ = history.scan_checkpoints(tmp_path / "away" / "zh" / "checkpoints")
    assert [one.manifest.step for one in good] == [2]


def test_a_slow_store_keeps_nobody_waiting_and_the_newest_checkpoint_is_next(tmp_path, log_lines):
    mirror, gate, copied = Mirror(f"file://{tmp_path}/away", "zh"), threading.Event(), []
    began = threading.Event()

    def slow(path):
        began.set()
        gate.wait(PATIENCE)
        copied.append(path.name)

    mirror._copy = slow
    for number in (1, 2, 3):
        mirror.add(tmp_path / history.name_of(number))
        assert began.wait(PATIENCE)
    mirror.finish(0.0)
    assert any("is not copied yet" in line for line in log_lines)
    gate.set()
    mirror.finish(PATIENCE)
    assert copied == [history.name_of(1), history.name_of(3)]


def test_a_half_copied_checkpoint_of_another_branch_is_replaced(tmp_path):
    path, away = step(tmp_path / "run", 1), tmp_path / "away" / "zh" / "checkpoints" / history.name_of(1)
    away.mkdir(parents=True)
    (away / MARKER).write_text("of another branch")
    (away / "manifest.json").write_text("{}")
    mirror = Mirror(f"file://{tmp_path}/away", "zh")
    mirror.add(path)
    mirror.finish(PATIENCE)
    assert read_checkpoint(away).manifest.step == 1


@pytest.mark.parametrize("url", ["nowhere://bucket", "s9://x"])
def test_a_place_that_is_not_known_is_told_before_the_run(url):
    with pytest.raises(UserError, match=r"checkpoint\.mirror"):
        check_mirror(url)
    check_mirror(None)
    check_mirror("memory://x")


def test_a_store_that_cannot_be_reached_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match="cannot be reached"):
        Mirror(f"file://{tmp_path}/file/x", "zh")
