"""A run looks after itself: spikes are skipped or rolled back, slow ranks are named, and a hang ends it."""

import json
import sys
from pathlib import Path

import pytest

from tests.helpers import runs
from tests.helpers.ranks import start_ranks
from trainer.metrics.jsonl import read_attempts

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
STEPS, STEP = 44, 8 * 32
BAD = 39
"""The step that spikes; the checkpoint before it is that of step 36."""
GLOO = {"CXX": "no-compiler"}
"""No shared-memory collectives of DeepSpeed: a rank that waits in one cannot print its stacks."""


def tree(data, run, action):
    tree = runs.long_recipe(data, run, STEPS)
    tree["checkpoint"] = {"every_tokens": 4 * STEP, "keep_last": 20}
    tree["validation"] = {"every_tokens": 10**9}
    tree["logging"] = {"tensorboard": False}
    tree["health"] = {"loss_spike": {"action": action}}
    return tree


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Runs with a spike, and the same runs killed after the checkpoint before it and started again."""
    folder = tmp_path_factory.mktemp("health")
    jobs = []
    for name, action in (("skip", "skip_update"), ("roll", "roll_back")):
        for run, after in ((name, None), (f"{name}-resumed", (folder / name, 36))):
            spikes = ((BAD - 1) * 8,)
            jobs.append(runs.Job(tree(data, folder / run, action), after=after, spikes=spikes))
    assert {job["status"] for job in runs.launch_several(folder, jobs, 2, timeout=1200)} == {0}
    return folder


def steps(run):
    return {record["step"]: record for record in runs.trace(run)}


def end(run):
    """What the last checkpoint holds: the run's state, and a checksum of every weight."""
    found = runs.manifest(run, STEPS)
    return found["state"], found["weights"], found["adam_step"]


@pytest.mark.parametrize("name", ["skip", "roll"])
def test_a_run_that_was_killed_beside_a_spike_is_equal_to_the_bit(folder, name):
    """Both what a spike is compared with and what is left out are part of the recorded past."""
    whole, resumed = steps(folder / name), steps(folder / f"{name}-resumed")
    assert list(whole) == list(range(1, STEPS + 1))
    assert list(resumed) == list(range(37, STEPS + 1))
    assert resumed == {step: record for step, record in whole.items() if step in resumed}
    assert end(folder / name) == end(folder / f"{name}-resumed")


def test_a_skipped_spike_changes_neither_weights_nor_schedule(folder):
    found = steps(folder / "skip")
    assert found[BAD]["loss/train"] > 10 * found[BAD - 1]["loss/train"]
    assert found[BAD + 1]["loss/train"] < 2 * found[BAD - 1]["loss/train"]
    assert found[BAD + 1]["lr"] == found[BAD]["lr"] != found[BAD - 1]["lr"]
    state, _, adam_step = end(folder / "skip")
    assert adam_step == STEPS - 1
    assert state["tokens"] - state["trained_tokens"] == STEP


def test_a_spike_is_rolled_back_and_its_samples_are_left_out_and_named(folder, data):
    run = folder / "roll"
    before, after = read_attempts(run)
    assert (after.restored_step, before.records[-1]["step"]) == (36, BAD)
    assert max(record["loss/train"] for record in after.records if "loss/train" in record) < 10
    assert not {BAD - 1, BAD} & {record["step"] for record in after.records if "loss/train" in record}
    (entry,) = json.loads((run / "left_out.json").read_text())
    assert (entry["phase"], entry["start"], entry["stop"], entry["step"]) == (0, 296, 312, BAD)
    assert len(entry["samples"]) == 16
    assert {one["prefix"] for one in entry["samples"]} <= {str(data / "zh"), str(data / "en")}
    assert end(run)[0]["left_out"] == [{"phase": 0, "start": 296, "stop": 312}]
    assert end(run)[2] == STEPS - 2
    assert len(read_attempts(folder / "roll-resumed")) == 1


def test_a_slow_rank_is_named_and_a_rank_that_hangs_ends_all_with_their_stacks(data, tmp_path):
    made = tree(data, tmp_path / "run", "warn")
    made["health"]["hang_after"] = "25s"
    recipe = runs.write(made, tmp_path / "r.yaml")
    worker = (sys.executable, str(HERE / "sick_rank.py"))
    ranks = start_ranks(tmp_path, 2, str(recipe), program=worker, **GLOO)
    assert [rank.wait() for rank in ranks] == [75, 75]
    assert "rank 1 (host " in ranks[0].said()
    assert "is slow: its forward passes" in ranks[0].said()
    for number, rank in enumerate(ranks):
        kept = (tmp_path / "run" / "logs" / f"rank-{number:04d}.log").read_text()
        for log in (rank.said(), kept):
            assert "(health.hang_after) while step 7" in log
            assert "trainer/run/loop.py" in log.split("stacks of all threads")[1]
    assert "sick_rank.py" in ranks[1].said().split("stacks of all threads")[1]
