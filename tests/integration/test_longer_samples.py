"""A run whose second phase has longer samples and another RoPE: exact over the change, exported with both."""

import json

import pytest

from tests.helpers import runs
from trainer.checkpoint.export import export_checkpoint
from trainer.checkpoint.manifest import read_checkpoint
from trainer.evaluation.offline import score_model

pytestmark = pytest.mark.slow
STEP = 8 * 32
"""Tokens in a step: 8 samples of 32, or 4 of 64."""

RESUMED = {
    # name: the step that it goes on from, and the ranks that share a sample
    "before": (2, 1),
    "at": (4, 1),
    "after": (6, 1),
    "before-shared": (2, 2),
    "after-shared": (6, 2),
}


def tree(data, run, parts=1):
    """Four steps of samples of 32 and four of 64; saved and measured every two steps."""
    tree = runs.recipe(data, run, 2, phases=2, name="any", document_mask="causal_per_document")
    tree["model"]["init"]["max_position_embeddings"] = 32
    for phase in tree["phases"]:
        phase |= {"tokens": 4 * STEP, "mixture": {"zh": "1/2", "en": "1/2"}}
    tree["phases"][1] |= {"seq_len": 64, "rope": {"rope_theta": "5e5", "rope_type": "linear", "factor": 2.0}}
    for source in tree["sources"].values():
        source["max_epochs"] = 1
    tree["validation"]["every_tokens"] = 2 * STEP
    tree["checkpoint"] = {"every_tokens": 2 * STEP, "keep_last": 9}
    tree["logging"] = {"tensorboard": False}
    return tree | {"sequence_parallel_size": parts}


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """The run `whole`, and those that went on from its checkpoints."""
    folder = tmp_path_factory.mktemp("longer")
    jobs = [runs.Job(tree(data, folder / "whole"))]
    for name, (step, parts) in RESUMED.items():
        jobs.append(runs.Job(tree(data, folder / name, parts), after=(folder / "whole", step)))
    assert {job["status"] for job in runs.launch_several(folder, jobs, 2, timeout=900)} == {0}
    return folder


def test_a_step_keeps_its_tokens_and_forgetting_its_windows(folder):
    records = runs.trace(folder / "whole")
    assert [record["tokens"] for record in records] == [number * STEP for number in range(9)]
    for record in records[1:]:
        assert record["tokens/source/zh"] + record["tokens/source/en"] == record["tokens"]
        assert record["tokens/source/zh"] == record["tokens"] / 2
    measured = [record["step"] for record in records if "eval/upstream/forgetting" in record]
    assert measured == [0, 2, 4, 6, 8]  # of the same windows of text: of none it is said that they differ


@pytest.mark.parametrize("name", RESUMED)
def test_a_resume_before_and_after_the_change_is_the_same_run(folder, name):
    step, parts = RESUMED[name]
    found = [record for record in runs.trace(folder / name) if record["step"] > step]
    expected = [record for record in runs.trace(folder / "whole") if record["step"] > step]
    assert len(found) == 8 - step
    if parts == 1:
        assert found == expected
        whole = runs.manifest(folder / "whole", 8)
        assert runs.manifest(folder / name, 8)["files"] == whole["files"]  # to the bit
    for left, right in zip(expected, found, strict=True):
        assert right == pytest.approx(left, abs=2e-6, rel=2e-6)
        assert right["data/samples_crc32"] == left["data/samples_crc32"]


def test_the_checkpoint_and_its_export_have_the_phases_context_and_rope(folder, data, tmp_path):
    configs = {
        step: json.loads((folder / "whole" / "checkpoints" / f"step-{step:08d}" / "config.json").read_text())
        for step in (2, 4, 6, 8)
    }
    assert [configs[step]["max_position_embeddings"] for step in configs] == [32, 32, 64, 64]
    checkpoint = read_checkpoint(folder / "whole" / "checkpoints" / "step-00000008")
    export_checkpoint(checkpoint, tmp_path / "out", "fp32", 2**30)
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert exported["max_position_embeddings"] == 64
    assert exported["rope_theta"] == 5e5  # for readers of the older form
    assert exported["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    # The export computes what the run computed: with another RoPE its score would be another one.
    last = runs.trace(folder / "whole")[-1]
    (score,) = score_model(str(tmp_path / "out"), [str(data / "en-val")]).values()
    assert score.bits_per_byte == pytest.approx(last["eval/upstream/bits_per_byte"], abs=1e-6)
