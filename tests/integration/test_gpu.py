"""What only a CUDA device can show; skipped without one. `benchmarks/gpu.sh` tries far more, and times it."""

import pytest
import torch

from tests.helpers import runs

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_killed_run_on_a_card_resumes_to_the_last_digit(data, tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    environment = {**runs.environment(), "DS_ACCELERATOR": "cuda"}
    monkeypatch.setattr(runs, "environment", lambda: environment)
    recipes = {}
    for name in ("whole", "killed"):
        tree = runs.recipe(data, tmp_path / name, name=name)
        tree["model"]["dtype"] = dtype
        recipes[name] = runs.write(tree, tmp_path / f"{name}.yaml")
    assert torch.cuda.is_available()
    assert runs.launch(recipes["whole"], 1).returncode == 0
    runs.kill_after(recipes["killed"], tmp_path / "killed", 1, 9)
    assert runs.launch(recipes["killed"], 1).returncode == 0
    assert runs.trace(tmp_path / "killed") == runs.trace(tmp_path / "whole")
