"""A run answers tasks as it trains: the same numbers at any ZeRO stage, after a resume, and of its export."""

import importlib.util
import json
import os

import pytest

from tests.helpers import runs
from tests.helpers.task_files import write_tasks
from trainer.checkpoint.export import export_checkpoint
from trainer.checkpoint.history import find_checkpoint
from trainer.metrics import names
from trainer.metrics.jsonl import read_metrics

pytestmark = pytest.mark.slow

STEP = 8 * 32
STAND_IN = runs.ROOT / "tests" / "helpers" / "stand_in_harness"
REAL = importlib.util.find_spec("lm_eval") is not None


def tree(data, run, stage, tasks):
    """Twelve steps; tasks are answered every five, and validation text every six."""
    found = runs.recipe(data, run, stage, name="any")
    found["validation"]["tasks"] = {"names": ["next_word"], "path": str(tasks), "every_tokens": 5 * STEP}
    found["model"]["init"]["max_position_embeddings"] = 64
    found["model"]["average"] = {"kind": "ema", "half_life": 4 * STEP}
    found["checkpoint"] = {"every_tokens": 5 * STEP, "keep_last": 9}
    found["logging"] = {"tensorboard": False}
    return found


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Runs at two stages, and one that goes on from step 5 of the first at the other stage."""
    folder = tmp_path_factory.mktemp("tasks")
    tasks = write_tasks(folder / "tasks", "next_word")
    jobs = [runs.Job(tree(data, folder / f"stage-{stage}", stage, tasks)) for stage in (1, 3)]
    jobs.append(runs.Job(tree(data, folder / "again", 3, tasks), after=(folder / "stage-1", 5)))
    with pytest.MonkeyPatch.context() as patch:
        given = runs.environment()
        path = given["PYTHONPATH"] if REAL else os.pathsep.join([given["PYTHONPATH"], str(STAND_IN)])
        patch.setattr(runs, "environment", lambda: given | {"PYTHONPATH": path})
        assert {job["status"] for job in runs.launch_several(folder, jobs, 2)} == {0}
    return folder


def numbers(run):
    """The numbers on tasks by step."""
    found = {
        record["step"]: {name: value for name, value in record.items() if names.is_task_metric(name)}
        for record in read_metrics(run)
    }
    return {step: own for step, own in found.items() if own}


def test_tasks_are_answered_before_the_first_step_when_due_and_at_the_end(folder):
    found = numbers(folder / "stage-1")
    assert list(found) == [0, 5, 10, 12]
    both = {"tasks/next_word/acc", "tasks/next_word/acc_stderr"}
    for step, own in found.items():
        assert both | {names.of_average(name) for name in both if step} <= own.keys()
        assert step or not any(name.startswith("average/") for name in own)
    assert len({json.dumps(own) for own in found.values()}) > 1 or REAL  # the model changes


def test_sharded_weights_give_the_same_numbers(folder):
    one, other = (numbers(folder / f"stage-{stage}") for stage in (1, 3))
    assert one.keys() == other.keys()
    for step in one:
        assert one[step] == pytest.approx(other[step], rel=1e-4)


def test_a_resume_neither_repeats_nor_loses_a_number(folder):
    before, again = numbers(folder / "stage-1"), numbers(folder / "again")
    # The run directory is another one and has no record of step 5: it is made up for.
    assert list(again) == [5, 10, 12]
    for step, own in again.items():
        assert own == pytest.approx(before[step], rel=1e-4)


@pytest.mark.skipif(not REAL, reason="lm-eval is an extra")
def test_the_export_has_the_numbers_of_the_run_s_last_step(folder, monkeypatch):
    from trainer.evaluation.tasks import run_tasks

    export_checkpoint(find_checkpoint(folder / "stage-3"), folder / "export", "fp32", 10**9)
    found = run_tasks(str(folder / "export"), ["next_word"], str(folder / "tasks"))["next_word"]
    last = numbers(folder / "stage-3")[12]
    for key, value in found.items():
        if "," in key:
            assert last[names.task_metric("next_word", key)] == pytest.approx(value, rel=1e-4)
