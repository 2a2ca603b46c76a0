"""At every ZeRO stage and world size: the same first weights, the same curve, old rows that stay."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from model_tiny import INIT, recipe

from trainer.model.build import build

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PIECES, OLD = 90, 70
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


@pytest.mark.parametrize("stage", STAGES)
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
@pytest.mark.parametrize("key", ["new_rows/fp32", "new_rows/bf16", "tied/new_rows"])
def test_new_rows_move_and_nothing_else_does_by_a_bit(launched, ranks, stage, key):
    found = launched[ranks][f"{key}/{stage}"]
    for name, before in found["before"].items():
        after = found["after"][name]
        if "embed" in name or "lm_head" in name:
            assert torch.equal(after[:OLD], before[:OLD]), name
            assert not torch.equal(after[OLD:], before[OLD:]), name
        else:
            assert torch.equal(after, before), name
