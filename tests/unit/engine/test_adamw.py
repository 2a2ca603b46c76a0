"""AdamW with moments in bf16 against the formula in fp64 with its moments rounded."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.model_tiny import recipe
from trainer.engine import adamw as room
from trainer.engine.adamw import NarrowAdamW, applied_steps, make_adamw, moment_bytes, set_applied_steps


def narrow(parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    settings = recipe("optimizer.state_dtype=bf16").optimizer
    made = make_adamw([{"params": [parameter], "weight_decay": 0.1}], settings, offload=False)
    made.param_groups[0]["lr"] = 1e-2
    return made


def test_each_step_is_adamw_with_rounded_moments(monkeypatch):
    monkeypatch.setattr(room, "WIDENED_AT_ONCE", 7)  # and the cut changes nothing
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5, 6))
    adam = narrow(parameter)
    assert isinstance(adam, NarrowAdamW)
    weight = parameter.detach().double().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 6):
        gradient = torch.randn(5, 6)
        parameter.grad = gradient.clone()
        adam.step()
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        weight -= 1e-2 * 0.1 * weight
        weight -= 1e-2 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-5, atol=1e-6)
        first, second = (adam.state[parameter][name].double() for name in ("exp_avg", "exp_avg_sq"))
        assert adam.state[parameter]["exp_avg"].dtype == torch.bfloat16
    assert applied_steps(adam) == 5
    assert moment_bytes(adam) == 2
    set_applied_steps(adam, 2)
    assert applied_steps(adam) == 2


def test_moments_are_within_a_rounding_of_those_in_fp32():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(1000))
    adam = narrow(parameter)
    wide = torch.zeros(1000, dtype=torch.float64)
    for _ in range(200):
        parameter.grad = torch.randn(1000)
        wide = 0.95 * wide + 0.05 * parameter.grad.double() ** 2
        adam.step()
    found = adam.state[parameter]["exp_avg_sq"].double()
    assert ((found - wide).abs() / wide).max() < 0.04
    assert abs(float((found / wide).mean()) - 1) < 0.005, "rounding to the nearest has no direction"


def test_a_beta2_whose_steps_are_rounded_away_is_refused():
    with pytest.raises(Exception, match="steps this small are rounded away"):
        recipe("optimizer.state_dtype=bf16", "optimizer.beta2=0.999")
