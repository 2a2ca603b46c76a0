"""A killed run, started again with the same command, is the run that was never killed: to the bit."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import runs
from trainer.machine.run_lock import hold_run_lock
from trainer.metrics.jsonl import read_metrics

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)


def tree_of(data, run, stage):
    """A run of two phases with one validation set by name beside the recipe's own two."""
    tree = runs.recipe(data, run, stage, phases=2, name="run")
    tree["validation"]["sets"] = {"again": {"path": str(data / "en-val"), "role": "downstream"}}
    tree["probe"] = {"prompts": ["the law of", "国家"], "max_tokens": 3}
    return tree


def scores(run):
    """All scores of all validations, exactly."""
    return [
        {name: value for name, value in record.items() if name.startswith("eval/")}
        for record in read_metrics(run)
    ]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The history of a run of two phases that nothing interrupts, by ZeRO stage."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trees = [tree_of(data, folder / f"stage-{stage}", stage) for stage in STAGES]
    runs.launch_several(folder, [runs.Job(tree) for tree in trees], 2)
    found = {stage: folder / f"stage-{stage}" for stage in STAGES}
    return {stage: (runs.trace(run), scores(run)) for stage, run in found.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_the_second_phase_the_run_goes_on_exactly(data, tmp_path, undisturbed, stage):
    expected, expected_scores = undisturbed[stage]
    assert [record["step"] for record in expected] == list(range(25))

    killed = runs.write(tree_of(data, tmp_path / "killed", stage), tmp_path / "b.yaml")
    assert runs.kill_after(killed, tmp_path / "killed", 2, step=18) >= 18
    again = runs.launch(killed, 2)
    assert again.returncode == 0, again.stderr[-2000:]
    assert runs.trace(tmp_path / "killed") == expected
    assert scores(tmp_path / "killed") == expected_scores
    last = expected_scores[-1]
    assert last["eval/downstream/again/bits_per_byte"] == last["eval/upstream/bits_per_byte"]
    assert last["eval/downstream/again/bits_per_byte_latin"] == last["eval/upstream/bits_per_byte_latin"]
    assert "eval/downstream/bits_per_byte_cjk" in last
    probes = [json.loads(line) for line in (tmp_path / "killed" / "probes.jsonl").open(encoding="utf-8")]
    assert [one["prompt"] for one in probes[-2:]] == ["the law of", "国家"]
    assert probes[-1]["step"] == 24

    kinds = [json.loads(line)["kind"] for line in (tmp_path / "killed" / "lineage.jsonl").open()]
    assert kinds == ["start", "new_phase", "restore"]


def test_one_and_two_ranks_and_any_cut_of_the_batch_train_the_same(data, tmp_path):
    traces = []
    for ranks, micro in ((1, 8), (1, 2), (2, 2)):
        run = tmp_path / f"{ranks}-{micro}"
        tree = runs.recipe(data, run, name="same", micro_batch_size=micro)
        done = runs.launch(runs.write(tree, tmp_path / f"{run.name}.yaml"), ranks)
        assert done.returncode == 0, done.stderr[-2000:]
        traces.append(runs.trace(run))
    for other in traces[1:]:
        for left, right in zip(traces[0], other, strict=True):
            assert left.keys() == right.keys()
            assert right == pytest.approx(left, abs=1e-6, rel=1e-6)
            assert left.get("lr") == right.get("lr")


def test_no_compiler_is_needed(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no" / "c++"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    tree = runs.recipe(data, tmp_path / "run", stop_after=256)
    done = runs.launch(runs.write(tree, tmp_path / "r.yaml"), 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert runs.last_step(tmp_path / "run") == 1


def test_shared_memory_of_a_killed_run_is_neither_taken_for_an_answer_nor_left(data, tmp_path):
    """DeepSpeed's collectives on the CPU name their buffers by user, address and port."""
    port = runs.free_port()
    left = [
        Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}_{rank}") for rank in (0, 1)
    ]
    for buffer in left:
        buffer.write_bytes(b"\x01\x00\x00\x00" * (66 << 18))
    tree = runs.recipe(data, tmp_path / "run", stop_after=2 * 256)
    done = runs.launch(runs.write(tree, tmp_path / "r.yaml"), 2, port=port)
    assert done.returncode == 0, done.stderr[-2000:]
    assert runs.last_step(tmp_path / "run") == 2
    assert not any(buffer.exists() for buffer in left)


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_finished_again(data, tmp_path):
    run = tmp_path / "run"
    recipe = runs.write(runs.recipe(data, run), tmp_path / "r.yaml")
    assert runs.launch(recipe, 2).returncode == 0
    expected = runs.trace(run)
    good = runs.launch(recipe, 2)
    assert good.returncode == 0
    assert "finished" in good.stderr
    assert runs.trace(run) == expected

    last = run / "checkpoints" / "step-00000012"
    file = next(last.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = runs.launch(recipe, 2)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{file.name}" in again.stderr
    assert "this checkpoint is passed over" in again.stderr
    assert runs.trace(run) == expected


def test_a_second_job_in_a_run_directory_waits_and_goes_on_from_what_the_first_one_left(data, tmp_path):
    first, run = tmp_path / "first", tmp_path / "run"
    recipe = runs.write(runs.recipe(data, run), tmp_path / "r.yaml")
    assert runs.launch(recipe, 1, f"run_dir={first}", f"stop_after={8 * 8 * 32}").returncode == 0
    with hold_run_lock(run):
        job = subprocess.Popen(
            runs.command(recipe, 2), env=runs.environment(), stderr=subprocess.PIPE, text=True
        )
        seen = []
        waiting = (line for line in job.stderr if seen.append(line) or "run directory is in use" in line)
        line = next(waiting, None)
        assert line is not None, "".join(seen)
        assert f"process {os.getpid()} on" in line
        assert any("decided  start" in line for line in seen), "nothing was there when it looked"
        shutil.copytree(first, run, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))
    rest = job.stderr.read()
    assert job.wait() == 0, rest
    assert "decided  restore" in rest
    assert runs.last_step(run) == 12
    assert not list((run / "checkpoints").glob("damaged-*"))
