"""Ranks that share samples train as ranks with whole samples do, and go on from each other's checkpoints."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import runs
from tests.helpers.model_tiny import build, recipe
from tests.integration.sequence_worker import ASKED, CASES, OPTIMIZER, PIECES, batch, cut
from trainer.model.loss import IGNORED

pytestmark = pytest.mark.slow
STEP = 8 * 32
"""Tokens in a step of the runs."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What four ranks computed of each case."""
    out = tmp_path_factory.mktemp("sequence") / "found.pt"
    worker = str(Path(__file__).with_name("sequence_worker.py"))
    done = subprocess.run(
        [*runs.launcher(4), worker, str(out)],
        env=runs.environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The same in plain PyTorch: one process, whole rows in one batch, the loss of all targets."""
    return {case: _plain(case) for case in CASES}


def _plain(case: str) -> dict[str, Any]:
    init, overrides, documents = CASES[case]
    causal = build(recipe(*overrides, "model.compile=false", **init), PIECES)
    given = batch(documents)
    narrow = cut(given)
    with torch.no_grad():
        score = causal(*_tensors(narrow))
    total, nats, targets = causal(*_tensors(given))
    counted = int((given.targets != IGNORED).sum())
    (total / counted).backward()
    gradients = {name: value.grad for name, value in causal.named_parameters()}
    source = torch.as_tensor(given.source)
    return {
        "scores": torch.stack([score[1].double().sum(), score[2].double().sum()]),
        "nats": torch.zeros(2, dtype=torch.float64).index_add_(0, source, nats.double()),
        "targets": torch.zeros(2, dtype=torch.float64).index_add_(0, source, targets.double()),
        "norm": torch.stack([grad.norm() for grad in gradients.values()]).norm().item(),
        "after": {
            name: value.detach() - gradients[name] / (gradients[name].abs() + OPTIMIZER["eps"])
            for name, value in causal.named_parameters()
        },
    }


def _tensors(micro: Any) -> list[torch.Tensor | None]:
    arrays = (micro.input_ids, micro.targets, micro.positions)
    return [None if array is None else torch.as_tensor(array) for array in arrays]


@pytest.mark.parametrize(("case", "stage", "parts"), ASKED)
def test_gradients_losses_and_scores_are_those_of_whole_samples(found, plain, case, stage, parts):
    computed, expected = found[case, stage, parts], plain[case]
    assert computed["targets"].tolist() == expected["targets"].tolist()  # every target once
    assert computed["norm"] == pytest.approx(expected["norm"], abs=1e-6)
    for name in ("nats", "scores"):
        torch.testing.assert_close(computed[name], expected[name], atol=0, rtol=1e-6)
    assert computed["after"].keys() == expected["after"].keys()
    for name, weights in expected["after"].items():
        torch.testing.assert_close(computed["after"][name], weights, atol=1e-6, rtol=0, msg=name)


def tree(data: Path, run: Path, parts: int) -> dict[str, Any]:
    """Four steps of a run, saved at the second and the fourth, with documents kept apart."""
    tree = runs.recipe(data, run, 2, name="any", stop_after=4 * STEP, document_mask="causal_per_document")
    tree["validation"]["every_tokens"] = 2 * STEP
    tree["checkpoint"] = {"every_tokens": 2 * STEP, "keep_last": 2}
    tree["logging"] = {"tensorboard": False}
    return tree | {"sequence_parallel_size": parts}


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `PARTS` of four ranks, and `PARTS-PARTS-RANKS`, which went on from their second step."""
    folder = tmp_path_factory.mktemp("parts")
    saved = [runs.Job(tree(data, folder / str(parts), parts)) for parts in (1, 2, 4)]
    for ranks, ways in ((4, ((1, 4), (2, 1), (4, 2))), (1, ((2, 1),))):
        jobs = [
            runs.Job(tree(data, folder / f"{before}-{now}-{ranks}", now), after=(folder / str(before), 2))
            for before, now in ways
        ]
        done = runs.launch_several(folder, [*saved, *jobs] if ranks == 4 else jobs, ranks, timeout=900)
        assert {job["status"] for job in done} == {0}
    return folder


@pytest.mark.parametrize("run", ["2", "4", "1-4-4", "2-1-4", "4-2-4", "2-1-1"])
def test_a_run_is_the_same_and_goes_on_with_any_size(folder, run):
    expected, records = runs.trace(folder / "1"), runs.trace(folder / run)
    # A copied checkpoint has no metrics with it, so the validation of its step is made up for.
    assert [record["step"] for record in records] == ([2, 3, 4] if "-" in run else [0, 1, 2, 3, 4])
    for left, right in zip(expected[-len(records) :], records, strict=True):
        assert right == pytest.approx({name: left[name] for name in right}, abs=2e-6, rel=2e-6)
        assert len(right) > 3
        if "data/samples_crc32" in right:
            assert right["data/samples_crc32"] == left["data/samples_crc32"]
