"""Phases that train a part of the model: what is frozen stays, is saved, and is there after a resume."""

import pytest
import torch

from tests.helpers import runs
from tests.helpers.model_tiny import build
from trainer.checkpoint import history, manifest, rank_files
from trainer.recipe.load import load_recipe

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
STEP = 8 * 32
"""Tokens in a step."""
NEW = 20
"""Rows that were appended to the base."""


def tree(data, run, stage, first, base):
    """Four steps of a part of the model, then four of all of it; saved every two."""
    tree = runs.recipe(data, run, stage, phases=2, name="any")
    tree["model"] |= {"init": None, "base": str(base)}
    for phase in tree["phases"]:
        phase["tokens"] = 4 * STEP
    tree["phases"][0]["train"] = first
    tree["validation"] = {"every_tokens": 100 * STEP}
    tree["checkpoint"] = {"every_tokens": 2 * STEP, "keep_last": 9}
    tree["logging"] = {"tensorboard": False}
    return tree


def moved(stage):
    """Another stage to go on at."""
    return (stage + 2) % 4


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A model whose last rows were appended, as `rewarm model extend` says it."""
    folder = tmp_path_factory.mktemp("base")
    recipe = load_recipe(runs.write(runs.recipe(data, folder / "run"), folder / "recipe.yaml"))
    model = build(recipe, 420).hf
    model.config.base_vocab_size = 420 - NEW
    model.save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def folder(data, base, tmp_path_factory):
    """Runs `TRAIN-STAGE`; from its second step, in the middle of its first phase, on: `-again`, `-moved`."""
    folder = tmp_path_factory.mktemp("phases")
    jobs = []
    for stage in STAGES:
        for first in ("embeddings", "new_rows"):
            run = folder / f"{first}-{stage}"
            jobs.append(runs.Job(tree(data, run, stage, first, base)))
            for name, at in ((f"{run}-again", stage), (f"{run}-moved", moved(stage))):
                jobs.append(runs.Job(tree(data, folder / name, at, first, base), after=(run, 2)))
    assert {job["status"] for job in runs.launch_several(folder, jobs, 2)} == {0}
    return folder


def weights(run, step):
    """Every parameter of a checkpoint, whole."""
    reader = rank_files.Reader(manifest.read_checkpoint(run / "checkpoints" / history.name_of(step)).files)
    return {name: reader.whole(name) for name in reader.pieces}


@pytest.mark.parametrize("first", ["embeddings", "new_rows"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_resume_in_the_middle_of_such_a_phase_is_exact(folder, stage, first):
    run = folder / f"{first}-{stage}"
    expected, again = runs.trace(run), runs.trace(folder / f"{run.name}-again")
    assert [record["step"] for record in again] == [3, 4, 5, 6, 7, 8]
    assert again == expected[2:]
    assert runs.manifest(folder / f"{run.name}-again", 8)["files"] == runs.manifest(run, 8)["files"]
    for left, right in zip(expected[2:], runs.trace(folder / f"{run.name}-moved"), strict=True):
        assert right["loss/train"] == pytest.approx(left["loss/train"], abs=1e-6, rel=0)


@pytest.mark.parametrize("first", ["embeddings", "new_rows"])
@pytest.mark.parametrize("stage", STAGES)
def test_only_what_is_trained_moves(folder, base, stage, first):
    from safetensors.torch import load_file

    run = folder / f"{first}-{stage}"
    before = {f"hf.{name}": value for name, value in load_file(base / "model.safetensors").items()}
    after, end = weights(run, 4), weights(run, 8)
    moved_too = weights(folder / f"{run.name}-moved", 4)
    assert before.keys() == after.keys() == end.keys()
    old = 420 - NEW if first == "new_rows" else 0
    for name, value in before.items():
        embedding = "embed_tokens" in name or "lm_head" in name
        frozen = slice(0, old) if embedding else slice(None)
        assert torch.equal(after[name][frozen], value[frozen]), name
        assert torch.equal(moved_too[name][frozen], value[frozen]), name
        if embedding:
            assert not torch.equal(after[name][old:], value[old:]), name
        assert not torch.equal(end[name], after[name]), name
