"""Weights that are not numbers are refused before the first step, at every ZeRO stage."""

import pytest
from safetensors.torch import load_file, save_file

from tests.helpers import runs
from tests.helpers.model_tiny import build, recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("stage", [0, 3])
def test_a_base_with_a_value_that_is_not_finite_is_refused_by_name(data, tmp_path, stage):
    base, name = tmp_path / "base", "model.layers.1.mlp.up_proj.weight"
    build(recipe(), 420).hf.save_pretrained(base)
    weights = load_file(base / "model.safetensors")
    weights[name][-1, -1] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    tree = runs.recipe(data, tmp_path / "run", stage=stage)
    tree["model"] |= {"init": None, "base": str(base)}
    done = runs.launch(runs.write(tree, tmp_path / "recipe.yaml"), 2)
    assert done.returncode != 0
    assert f"{name} holds values that are not finite" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert runs.last_step(tmp_path / "run") == 0
