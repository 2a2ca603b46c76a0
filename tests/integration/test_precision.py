"""In 16 bits, weights that are not trained keep their fp32 value, and a base is taken as it is."""

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import runs
from tests.helpers.model_tiny import build
from trainer.checkpoint import history, manifest, rank_files
from trainer.cli.main import main
from trainer.recipe.load import load_recipe

pytestmark = pytest.mark.slow

STEP = 8 * 32
"""Tokens in a step."""
NEW = 20
"""Rows that were appended to the base."""
RUNS = [(dtype, stage) for dtype in ("bf16", "fp16") for stage in (1, 2, 3)]


def is_embedding(name):
    return "embed_tokens" in name or "lm_head" in name


def tree(data, run, stage, dtype, base):
    """Two steps each: of new rows, of everything, and of the embeddings."""
    tree = runs.recipe(data, run, stage, phases=3, name="any")
    tree["model"] |= {"init": None, "base": str(base), "dtype": dtype}
    for phase, train in zip(tree["phases"], ("new_rows", "all", "embeddings"), strict=True):
        phase |= {"tokens": 2 * STEP, "train": train}
        phase["schedule"] |= {"kind": "constant", "warmup": 0, "max_lr": 1e-5}  # too little for 16 bits
    tree["validation"] = {"every_tokens": 100 * STEP}
    tree["checkpoint"] = {"every_tokens": STEP, "keep_last": 9}
    tree["logging"] = {"tensorboard": False}
    return tree


def made_base(data, folder, dtype):
    """A model in `dtype` whose last rows were appended, with values that no other precision holds."""
    recipe = load_recipe(runs.write(runs.recipe(data, folder / "run"), folder / f"{dtype}.yaml"))
    model = build(recipe, 420).hf
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-2 * torch.randn(parameter.shape, generator=generator))
    model.config.base_vocab_size = 420 - NEW
    model.to(dtype).save_pretrained(folder / f"base-{dtype}")
    return folder / f"base-{dtype}"


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Runs `DTYPE-STAGE` of a base in fp32, their resumes at another stage from step 5, and one of fp16."""
    folder = tmp_path_factory.mktemp("precision")
    base = made_base(data, folder, torch.float32)
    jobs = []
    for dtype, stage in RUNS:
        run = folder / f"{dtype}-{stage}"
        jobs.append(runs.Job(tree(data, run, stage, dtype, base)))
        moved = folder / f"{run.name}-moved"
        jobs.append(runs.Job(tree(data, moved, stage % 3 + 1, dtype, base), after=(run, 5)))
    half = made_base(data, folder, torch.float16)
    jobs.append(runs.Job(tree(data, folder / "of-fp16", 2, "bf16", half)))
    assert {job["status"] for job in runs.launch_several(folder, jobs, 2)} == {0}
    return folder


def weights(run, step):
    """Every parameter of a checkpoint, whole."""
    reader = rank_files.Reader(manifest.read_checkpoint(run / "checkpoints" / history.name_of(step)).files)
    return {name: reader.whole(name) for name in reader.pieces}


def base_weights(base):
    return {f"hf.{name}": value.float() for name, value in load_file(base / "model.safetensors").items()}


@pytest.mark.parametrize(("dtype", "stage"), RUNS)
def test_a_base_in_fp32_is_not_rounded(folder, dtype, stage):
    """The frozen weights are the base's, and so are the old rows of the embeddings, which are masters."""
    after = weights(folder / f"{dtype}-{stage}", 2)
    for name, value in base_weights(folder / "base-torch.float32").items():
        old = slice(0, 420 - NEW) if is_embedding(name) else slice(None)
        assert after[name].dtype == torch.float32, name
        assert torch.equal(after[name][old], value[old]), name


def test_a_base_in_fp16_is_not_rounded_to_bf16(folder):
    after = weights(folder / "of-fp16", 2)
    for name, value in base_weights(folder / "base-torch.float16").items():
        old = slice(0, 420 - NEW) if is_embedding(name) else slice(None)
        assert torch.equal(after[name][old], value[old]), name
        assert not torch.equal(value, value.bfloat16().float()), name


@pytest.mark.parametrize(("dtype", "stage"), RUNS)
@pytest.mark.parametrize("which", ["", "-moved"])
def test_a_frozen_weight_keeps_what_it_has_learnt(folder, dtype, stage, which):
    run = folder / f"{dtype}-{stage}"
    learnt, after = weights(run, 4), weights(folder / f"{run.name}{which}", 6)
    for name, value in learnt.items():
        assert torch.equal(after[name], value) != is_embedding(name), name
        assert not torch.equal(value, value.bfloat16().float()), name


def test_an_export_has_the_learnt_values(folder):
    run, out = folder / "bf16-2", folder / "export"
    assert main(["export", str(run), "--out", str(out), "--dtype", "fp32"]) == 0
    exported = base_weights(out)
    for name, value in weights(run, 6).items():
        assert torch.equal(exported[name], value[: len(exported[name])]), name
