"""A trace of some steps is written once, also by a run that ends before they are over."""

from __future__ import annotations

import json

import pytest
import torch

from trainer.machine.profile import WARM_UP, StepProfile


def step() -> None:
    torch.randn(8, 8) @ torch.randn(8, 8)


@pytest.mark.parametrize("made", [WARM_UP + 2, WARM_UP + 7])
def test_the_steps_after_the_warm_up_are_traced_once(tmp_path, made):
    traced = StepProfile(tmp_path / "profile", 3, steps=2)
    for _ in range(made):
        step()
        traced.step()
    traced.close()
    tree = json.loads((tmp_path / "profile" / "rank-0003.json").read_text())
    products = [event for event in tree["traceEvents"] if event.get("name") == "aten::mm"]
    assert len(products) == 2


def test_without_steps_nothing_is_written(tmp_path):
    traced = StepProfile(tmp_path / "profile", 0, steps=0)
    for _ in range(WARM_UP + 2):
        traced.step()
    traced.close()
    assert not (tmp_path / "profile").exists()
