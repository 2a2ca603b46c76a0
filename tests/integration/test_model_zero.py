"""At every ZeRO stage and world size: the same first weights, the same curve, old rows that stay."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.model_tiny import INIT, build, recipe
from tests.integration.model_zero_worker import OLD, PIECES, SCALE, STEPS, batch

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("base")
    build(recipe("seed=5"), PIECES).hf.save_pretrained(where, max_shard_size="20kB")
    return where


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def launched(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What the worker found, by world size."""
    found = {}
    for ranks in (1, 2):
        out = tmp_path_factory.mktemp(f"ranks-{ranks}")
        worker = [str(HERE / "model_zero_worker.py"), str(base), str(out)]
        where = ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
        launcher = [str(Path(sys.executable).parent / "deepspeed"), *where]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(HERE.parents[1]),
            "PATH": path,
        }
        subprocess.run([*launcher, *worker], env=environment, check=True, timeout=300)
        found[ranks] = torch.load(out / "found.pt", weights_only=False)
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", INIT)
def test_random_weights_are_those_of_a_plain_build(launched, ranks, stage, kind):
    plain = dict(build(recipe(**INIT[kind]), PIECES).named_parameters())
    assert equal(launched[ranks][f"random/{kind}/{stage}"]["before"], plain)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_base_is_loaded_to_the_bit(launched, ranks, stage):
    plain = dict(build(recipe("seed=5"), PIECES).named_parameters())
    assert equal(launched[ranks][f"base/{stage}"]["before"], plain)


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("ranks", [1, 2])
def test_bf16_weights_are_the_fp32_ones_rounded_and_rotations_stay_exact(launched, ranks, stage):
    plain = {name: value.bfloat16() for name, value in build(recipe(), PIECES).named_parameters()}
    found = launched[ranks][f"bf16/{stage}"]
    assert equal(found["before"], plain)
    assert found["rotary"] == torch.float32


@pytest.mark.parametrize("kind", INIT)
def test_the_curve_does_not_depend_on_stage_or_world_size(launched, kind):
    expected = launched[1][f"random/{kind}/0"]["losses"]
    assert len(set(expected)) == len(expected)
    for ranks in (1, 2):
        for stage in STAGES:
            found = launched[ranks][f"random/{kind}/{stage}"]["losses"]
            assert found == pytest.approx(expected, abs=1e-6), (ranks, stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_layers_give_the_same_curve(launched, ranks, stage):
    expected = launched[1]["random/llama/0"]["losses"]
    assert launched[ranks][f"compiled/{stage}"]["losses"] == pytest.approx(expected, abs=1e-6)


def test_moments_in_bf16_give_one_curve_at_every_stage_and_world_size(launched):
    exact, expected = (launched[1][f"{key}/0"]["losses"] for key in ("random/llama", "narrow"))
    assert expected != exact
    assert expected == pytest.approx(exact, rel=1e-3)
    for ranks in (1, 2):
        for stage in STAGES:
            assert launched[ranks][f"narrow/{stage}"]["losses"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        *product(("new_rows/fp32", "tied/new_rows"), STAGES),
        *product(("new_rows/bf16",), STAGES[1:]),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_new_rows_move_and_nothing_else_does_by_a_bit(launched, ranks, stage, key):
    found = launched[ranks][f"{key}/{stage}"]
    for name, before in found["before"].items():
        after = found["after"][name]
        if "embed" in name or "lm_head" in name:
            assert torch.equal(after[:OLD], before[:OLD]), name
            assert not torch.equal(after[OLD:], before[OLD:]), name
        else:
            assert torch.equal(after, before), name


def with_rows_as_parameters(tied: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The independent reference: old and new rows are parameters of their own, in groups of plain AdamW."""
    causal = build(recipe(**{**INIT["llama"], "tie_word_embeddings": tied}), PIECES)
    parts = {
        name: [part.detach().clone().requires_grad_() for part in (value[:OLD], value[OLD:])]
        if "embed" in name or "lm_head" in name
        else [value.detach().clone().requires_grad_()]
        for name, value in causal.named_parameters()
    }
    factors = (SCALE["embeddings"], SCALE["new_rows"])
    groups = [
        {"params": [part], "lr": 1e-3 * factor, "weight_decay": 0.1 if part.ndim > 1 else 0.0}
        for cut in parts.values()
        for part, factor in zip(cut, factors if len(cut) > 1 else (1.0,), strict=True)
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses = []
    for step in range(STEPS):
        micro = batch(step, 0, 1)
        weights = {name: torch.cat(cut) for name, cut in parts.items()}
        inputs = tuple(map(torch.as_tensor, (micro.input_ids, micro.targets, micro.positions)))
        total, _, _ = torch.func.functional_call(causal, weights, inputs)
        adam.zero_grad()
        (total / 64).backward()
        torch.nn.utils.clip_grad_norm_([part for cut in parts.values() for part in cut], 1.0)
        adam.step()
        losses.append(total.item() / 64)
    return {name: torch.cat(cut).detach() for name, cut in parts.items()}, losses


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("key", "tied"), [("scaled", "false"), ("tied/scaled", "true")])
def test_new_rows_have_a_learning_rate_of_their_own_beside_all_the_rest(launched, ranks, stage, key, tied):
    found = launched[ranks][f"{key}/{stage}"]
    weights, losses = with_rows_as_parameters(tied)
    assert found["losses"] == pytest.approx(losses, abs=1e-6)
    assert found["after"].keys() == weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(
            found["after"][name], expected, atol=2e-5, rtol=1e-4
        )  # a step is 1e-3 to 5e-3
        assert not torch.equal(found["after"][name], found["before"][name])
