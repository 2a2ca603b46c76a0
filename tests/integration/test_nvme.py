"""Optimizer states and weights swapped to files: the same run as in memory, saved and resumed to the bit."""

import json
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory as torch_extensions

from tests.helpers import runs

BUILD = "python -c 'from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()'"
BUILT = Path(torch_extensions("async_io", verbose=False)) / "async_io.so"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT.exists(), reason=f"takes libaio and minutes of g++: {BUILD}"),
]

STEP = 8 * 32
"""Tokens in a step."""
SWAPPED = {"states": ("offload_optimizer",), "states-and-weights": ("offload_optimizer", "offload_param")}
"""What is on files, by case."""


def tree(data: Path, run: Path, preset: dict) -> dict:
    """Four steps, saved every second, of a model that is large enough for DeepSpeed to swap it."""
    written = run.parent / f"{run.name}.json"
    written.write_text(json.dumps(preset))
    tree = runs.recipe(data, run, name="any", stop_after=4 * STEP, micro_batch_size=2)
    tree["deepspeed"] = str(written)
    tree["model"]["init"] |= {"hidden_size": 512, "intermediate_size": 1408}
    tree["checkpoint"] = {"every_tokens": 2 * STEP, "keep_last": 9}
    tree["validation"]["every_tokens"] = 3 * STEP
    tree["logging"] = {"tensorboard": False}
    return tree


def preset(folder: Path, swapped: tuple[str, ...]) -> dict:
    """As it ships, but that the small model has several sub-groups, and no weight may stay in memory."""
    preset = json.loads((runs.ROOT / "ds_configs/zero3-nvme.json").read_text())
    zero = preset["zero_optimization"] | {"sub_group_size": 1_000_000}
    for what in ("offload_optimizer", "offload_param"):
        on_disk = {"device": "nvme", "nvme_path": str(folder)}
        # Pinning would compile an op more, and a CPU gains nothing by it.
        zero[what] = {**(on_disk if what in swapped else {"device": "cpu"}), "pin_memory": False}
    if "offload_param" in swapped:
        zero["offload_param"] |= {"max_in_cpu": 0}
    return {**preset, "zero_optimization": zero}


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Runs `memory`, each case, `CASE-again` from its second step, and `CASE-elsewhere` from it in memory."""
    folder = tmp_path_factory.mktemp("nvme")
    disk = folder / "disk"
    disk.mkdir()
    jobs = [runs.Job(tree(data, folder / "memory", preset(disk, ())))]
    for name, swapped in SWAPPED.items():
        run, again, elsewhere = (folder / f"{name}{suffix}" for suffix in ("", "-again", "-elsewhere"))
        jobs.append(runs.Job(tree(data, run, preset(disk, swapped))))
        jobs.append(runs.Job(tree(data, again, preset(disk, swapped)), after=(run, 2)))
        jobs.append(runs.Job(tree(data, elsewhere, preset(disk, ())), after=(run, 2)))
    done = runs.launch_several(folder, jobs, 2, timeout=1500)  # where the ops are still to be compiled
    assert {job["status"] for job in done} == {0}
    return folder


def after_the_second_step(run: Path) -> list[dict]:
    return [record for record in runs.trace(run) if record["step"] > 2]


@pytest.mark.parametrize("name", SWAPPED)
def test_where_it_lies_changes_nothing(folder, name):
    assert runs.trace(folder / name) == runs.trace(folder / "memory")
    assert runs.manifest(folder / name, 4)["weights"] == runs.manifest(folder / "memory", 4)["weights"]


@pytest.mark.parametrize("name", SWAPPED)
def test_a_checkpoint_is_in_files_of_a_sub_group_each(folder, name):
    files = runs.manifest(folder / name, 4)["files"]
    assert {"rank-00000.safetensors", "rank-00000-00001.safetensors"} <= files.keys()


@pytest.mark.parametrize("name", SWAPPED)
def test_resumed_it_is_the_same_run_to_the_bit(folder, name):
    assert runs.trace(folder / f"{name}-again") == after_the_second_step(folder / name)
    whole, again = (runs.manifest(folder / run, 4) for run in (name, f"{name}-again"))
    for same in ("files", "weights", "adam_step", "state"):
        assert again[same] == whole[same], same


@pytest.mark.parametrize("name", SWAPPED)
def test_it_is_resumed_in_memory(folder, name):
    assert runs.trace(folder / f"{name}-elsewhere") == after_the_second_step(folder / name)


def test_nothing_stays_on_the_disk(folder):
    assert [path for path in (folder / "disk").rglob("*") if path.is_file()] == []
