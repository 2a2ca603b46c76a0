"""The files of a run directory: what a kill may leave, and the reader of the lineage."""

from pathlib import Path

import pytest

from tokenization.disk import write_atomically
from trainer.machine.run_lock import hold_run_lock
from trainer.storage.records import append_record
from trainer.storage.run_directory import RunDirectory, find_runs


def test_a_folder_of_runs_stands_for_them(tmp_path):
    for name, file in (("b", "status.json"), ("a", "metrics.jsonl"), ("text", "zh.jsonl")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "study.json").touch()
    for alone in ("a", "text", "nowhere"):
        inside = [tmp_path / "a", tmp_path / "b"]
        assert find_runs([tmp_path / alone, tmp_path]) == [tmp_path / alone, *inside]
    (tmp_path / "status.json").touch()
    assert find_runs([str(tmp_path)]) == [tmp_path]


def test_a_run_without_lineage_has_none(tmp_path):
    assert RunDirectory(tmp_path).read_lineage(print) == []


def test_what_a_start_leaves_when_it_is_killed_before_it_has_begun_is_known(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    run = RunDirectory(tmp_path)
    with hold_run_lock(tmp_path, print), pytest.raises(KeyboardInterrupt):
        write_atomically(run.recipe, "name: x")
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    assert run.foreign() == []
    for name in (".shared-x", "slurm-17.out", "train.log"):
        (tmp_path / name).touch()
    assert run.foreign() == []
    (tmp_path / "thesis.txt").touch()
    (tmp_path / "run.log").mkdir()
    assert run.foreign() == ["run.log", "thesis.txt"]


@pytest.mark.parametrize("torn", ['{"kind": "rest', "\0\0\0", "[" * 10])
def test_a_last_line_that_was_cut_short_is_said_and_does_not_spoil_the_next(tmp_path, torn):
    run, said = RunDirectory(tmp_path), []
    run.lineage.write_text('{"kind": "start"}\n{"kind": "restore"}\n' + torn)
    assert [record["kind"] for record in run.read_lineage(said.append)] == ["start", "restore"]
    assert said == [f"{run.lineage}: passed over its last line, which is cut short"]
    append_record(run.lineage, {"kind": "new_phase", "reason": "因为"}, said.append)
    assert said[1].startswith(f"{run.lineage}: removed its last line, which a kill or a power cut")
    assert [r["kind"] for r in run.read_lineage(said.append)] == ["start", "restore", "new_phase"]
    assert len(said) == 2


@pytest.mark.parametrize("line", [b"rubbish", b"3", b'"text"', b"[]", b"\xff\xfe", b'{"kind": "st'])
@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_line_is_named_and_passed_over(tmp_path, line, place):
    run, said = RunDirectory(tmp_path), []
    lines = [b'{"kind": "start"}', b'{"kind": "restore"}']
    lines.insert(place, line)
    run.lineage.write_bytes(b"\n".join([*lines, b""]))
    assert [record["kind"] for record in run.read_lineage(said.append)] == ["start", "restore"]
    assert said == [f"{run.lineage}: passed over 1 damaged line(s) of 3: {place + 1}"]
