"""Every preset that a CPU can run, and every number format: trained, saved, and resumed to the bit."""

import json
import math
from pathlib import Path

import pytest

from tests.helpers import runs
from trainer.metrics.jsonl import read_metrics

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
STEP = 8 * 32
"""Tokens in a step."""

PRESETS = ("zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "zeropp")
"""All that need neither a GPU nor an NVMe disk; of zeropp the part that is not quantized."""
CASES = {
    **{preset: (preset, "fp32", "all") for preset in PRESETS},
    **{
        f"zero{stage}-{dtype}": (f"zero{stage}", dtype, "all")
        for dtype in ("bf16", "fp16")
        for stage in STAGES[1:]
    },
    "zero2-offload-bf16": ("zero2-offload", "bf16", "all"),
    "zero3-offload-bf16": ("zero3-offload", "bf16", "all"),
    "zeropp-frozen": ("zeropp", "fp32", "embeddings"),
}
"""Name to preset, model.dtype and phases.0.train."""
WHOLE = [name for name, (_, dtype, train) in CASES.items() if (dtype, train) == ("fp32", "all")]
FP16 = [name for name, (_, dtype, _) in CASES.items() if dtype == "fp16"]

SUB_GROUP = 5_000
"""Elements per rank; a small part of the model."""

POISONED = 3
"""The step whose gradients are made infinite."""


def tree(data: Path, run: Path, preset: str, dtype: str, train: str = "all", every: int = 3) -> dict:
    """Six steps with accumulation of a run of twelve."""
    tree = runs.recipe(data, run, name="any", stop_after=6 * STEP, micro_batch_size=2)
    tree["deepspeed"] = str(_on_cpu(preset, run.parent))
    tree["model"]["dtype"] = dtype
    tree["phases"][0]["train"] = train
    # With this beta2, powers taken at once and multiplied up differ in the bits of the first steps.
    tree["optimizer"] = {"beta2": 0.99}
    tree["validation"] = {"every_tokens": 100 * STEP}
    tree["checkpoint"] = {"every_tokens": every * STEP, "keep_last": 9}
    tree["logging"] = {"tensorboard": False}
    return tree


def _on_cpu(preset: str, folder: Path) -> Path:
    """The preset as it ships, but that ZeRO++ groups 2 ranks and does not quantize, which takes a GPU, and
    that ZeRO-3 steps its weights in several sub-groups, as it does those of a large model.
    """
    shipped = runs.ROOT / "ds_configs" / f"{preset}.json"
    zero = json.loads(shipped.read_text())["zero_optimization"]
    if zero["stage"] != 3:
        return shipped
    kept = {name: value for name, value in zero.items() if "quantized" not in name}
    own = {"zero_hpz_partition_size": 2} if preset == "zeropp" else {"sub_group_size": SUB_GROUP}
    path = folder / shipped.name
    path.write_text(json.dumps({"zero_optimization": {**kept, **own}}))
    return path


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Runs `CASE` and `CASE-again`, which went on from its third step; and `poisoned-STAGE`."""
    folder = tmp_path_factory.mktemp("presets")
    jobs = []
    for name, case in CASES.items():
        run, again, fp16 = folder / name, folder / f"{name}-again", case[1] == "fp16"
        jobs.append(runs.Job(tree(data, run, *case), poison=(2, 5) if fp16 else ()))
        jobs.append(runs.Job(tree(data, again, *case), after=(run, 3), poison=(2,) if fp16 else ()))
    for stage in STAGES:
        run = folder / f"poisoned-{stage}"
        jobs.append(runs.Job(tree(data, run, f"zero{stage}", "fp32", every=1), poison=(POISONED,)))
    assert {job["status"] for job in runs.launch_several(folder, jobs, 2)} == {0}
    return folder


@pytest.mark.parametrize("name", CASES)
def test_resumed_it_is_the_same_run_to_the_bit(folder, name):
    expected, found = runs.trace(folder / name), runs.trace(folder / f"{name}-again")
    assert [record["step"] for record in expected] == [1, 2, 3, 4, 5, 6]
    assert found == expected[3:]
    whole, again = (runs.manifest(folder / run, 6) for run in (name, f"{name}-again"))
    for same in ("files", "weights", "adam_step", "loss_scale", "state"):
        assert again[same] == whole[same], same


@pytest.mark.parametrize("name", WHOLE)
def test_a_preset_changes_where_memory_is_and_not_what_is_learnt(folder, name):
    for left, right in zip(runs.trace(folder / "zero0"), runs.trace(folder / name), strict=True):
        assert right == pytest.approx(left, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("name", FP16)
def test_fp16_skips_the_steps_that_overflow_and_its_schedule_waits(folder, name):
    first, last = (runs.manifest(folder / name, step) for step in (3, 6))
    # DeepSpeed bears one overflow and halves the scale at the next; the two lie on both sides of the resume.
    assert (first["loss_scale"]["cur_scale"], first["loss_scale"]["cur_hysteresis"]) == (2**16, 1)
    assert last["loss_scale"]["cur_scale"] == 2**15
    assert (last["adam_step"], last["state"]["trained_tokens"], last["state"]["tokens"]) == (
        4,
        4 * STEP,
        6 * STEP,
    )
    records = {record["step"]: record for record in read_metrics(folder / f"{name}-again")}
    assert records[5]["tokens/skipped"] == 2 * STEP
    assert records[6]["lr"] == records[5]["lr"] > records[4]["lr"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_is_not_finite_changes_nothing_but_the_data_position(folder, stage):
    run = folder / f"poisoned-{stage}"
    before, after = (runs.manifest(run, step) for step in (POISONED - 1, POISONED))
    assert after["files"] == before["files"]  # weights and moments, on both ranks
    assert after["adam_step"] == before["adam_step"] == POISONED - 1
    assert after["state"]["samples"] == before["state"]["samples"] + 8
    assert after["state"]["phase_trained_tokens"] == before["state"]["phase_trained_tokens"]
    last = runs.manifest(run, 6)
    assert last["files"] != after["files"]
    assert (last["adam_step"], last["state"]["trained_tokens"]) == (5, 5 * STEP)

    records = {record["step"]: record for record in read_metrics(run)}
    undisturbed = {record["step"]: record for record in read_metrics(folder / f"zero{stage}")}
    assert not math.isfinite(records[POISONED]["grad_norm"])
    assert records[POISONED]["tokens/skipped"] == STEP
    for step in range(1, POISONED + 1):
        assert records[step]["lr"] == undisturbed[step]["lr"]
    for step in range(POISONED + 1, 7):
        # The LR's clock stood still for a step; the data's did not.
        assert records[step]["lr"] == undisturbed[step - 1]["lr"]
        assert records[step]["tokens/source/zh"] == undisturbed[step]["tokens/source/zh"]
        assert math.isfinite(records[step]["loss/train"])
