"""A study's directory read back: every arm with its seed, its curves and how it ended."""

import math

import pytest

from tests.helpers import studies
from tokenization.errors import UserError
from trainer.model.size import parameters
from trainer.study.results import Planned, StudyRecord, read_record, read_results, write_record


def test_what_the_runs_recorded_is_what_the_table_says(tmp_path):
    studies.write_run(tmp_path / "a", (2.0, 2.4, 2.5), (3.0, 2.2, 2.1))
    studies.write_run(tmp_path / "a-seed-1", (2.0, 2.4, math.nan), (3.0, 2.2, math.nan))
    studies.write_run(tmp_path / "b", (2.0, 2.1), (3.0, 2.9), unfinished=True)
    planned = (
        Planned("a", "a", 0, fields={"phases.0.tokens": 1}),
        Planned("a", "a-seed-1", 1),
        Planned("b", "b", 0),
        Planned("b", "not-begun", 1),
    )
    record = StudyRecord("replay", "recipe.yaml", planned)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record

    first, diverged, half = read_results(tmp_path)
    assert (first.name, first.seed, first.size, first.fields) == ("a", 0, "", {"phases.0.tokens": 1})
    assert first.upstream.bits_per_byte == (2.0, 2.4, 2.5)
    assert first.downstream.nats_per_token == (6.0, 4.4, 4.2)
    assert first.downstream.tokens == (0, 50 * studies.STEP, 100 * studies.STEP)
    assert first.tokens == 100 * studies.STEP
    assert first.parameters == parameters(studies.CONFIG) > 0
    assert first.replay == 0.25
    assert first.finished
    assert not first.diverged
    assert first.forgetting == pytest.approx(0.5)
    assert (first.upstream.base, first.downstream.end) == (2.0, 2.1)
    assert first.upstream.after(1) == 2.4
    assert diverged.diverged
    assert diverged.forgetting == math.inf
    assert (half.finished, half.diverged, half.directory.name) == (False, False, "b")


def test_scores_are_counted_from_the_studied_phase_on(tmp_path):
    phases = (
        '[{"name":"base","tokens":102400,"mixture":{"replay_ratio":1},"schedule":{"kind":"constant","max_lr":1}},'
        '{"name":"new","tokens":102400,"mixture":{"replay_ratio":0},"schedule":{"kind":"constant","max_lr":1}}]'
    )
    run = tmp_path / "a"
    studies.write_run(run, (9.0, 2.0, 2.5), (9.0, 3.0, 2.1), overrides=(f"phases={phases}",))
    write_record(tmp_path, StudyRecord("replay", "recipe.yaml", (Planned("a", "a", 0, phase=1),)))
    (arm,) = read_results(tmp_path)
    assert arm.downstream.tokens == (0, 102400)
    assert (arm.upstream.base, arm.forgetting, arm.tokens) == (2.0, 0.5, 102400)


def test_arms_of_an_earlier_call_stay_in_the_record(tmp_path):
    first, second = Planned("a", "a", 0), Planned("a", "a-seed-1", 1)
    write_record(tmp_path, StudyRecord("grid", "recipe.yaml", (first, second)))
    again = Planned("a", "a", 0, fields={"x": 1})
    write_record(tmp_path, StudyRecord("grid", "recipe.yaml", (again,)))
    assert read_record(tmp_path).arms == (again, second)


def test_a_directory_that_is_not_this_study_is_told(tmp_path):
    with pytest.raises(UserError, match=r"study\.json: is missing; give the --out"):
        read_results(tmp_path)
    write_record(tmp_path, StudyRecord("replay", "recipe.yaml", ()))
    with pytest.raises(UserError, match="holds the study replay, not warmup"):
        write_record(tmp_path, StudyRecord("warmup", "recipe.yaml", ()))
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        read_record(tmp_path)
