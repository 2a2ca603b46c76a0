"""The files of a run directory: what a kill may leave, and the reader of the lineage."""

from pathlib import Path

import pytest

from tokenization.disk import write_atomically
from tokenization.errors import UserError
from trainer.machine.run_lock import hold_run_lock
from trainer.storage.run_directory import RunDirectory


def test_a_run_without_lineage_has_none(tmp_path):
    assert RunDirectory(tmp_path).read_lineage() == []


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


def test_a_last_line_that_a_kill_cut_short_is_ignored(tmp_path):
    run = RunDirectory(tmp_path)
    run.lineage.write_text('{"kind": "start"}\n{"kind": "restore"}\n{"kind": "rest')
    assert [record["kind"] for record in run.read_lineage()] == ["start", "restore"]


@pytest.mark.parametrize("line", ["rubbish", "3", '"text"'])
def test_a_damaged_line_is_named(tmp_path, line):
    run = RunDirectory(tmp_path)
    run.lineage.write_text(f'{{"kind": "start"}}\n{line}\n')
    with pytest.raises(UserError, match=r"lineage\.jsonl:2: is not a record; remove the line"):
        run.read_lineage()
