"""Against transformers' schedulers, where they mean the same: the LR of every step of a run.

Theirs of `wsd` warms up from min_lr, which is `start_lr` here; theirs of `inverse_sqrt` and of cosine with
restarts are other curves.
"""

import numpy as np
import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from tests.helpers.scheduler_runs import schedule
from trainer.scheduler.curves import Curve

STEPS, WARM, TOKENS = 200, 20, 4096 * 8


def theirs(build, **options):
    """The LR of each step; a scheduler is stepped after the optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = build(optimizer, num_warmup_steps=WARM, **options)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("fields", "build", "options"),
    [
        (
            {"kind": "cosine", "min_lr": "3e-5"},
            get_cosine_with_min_lr_schedule_with_warmup,
            {"num_training_steps": STEPS, "min_lr_rate": 0.1},
        ),
        ({"kind": "linear", "min_lr": 0}, get_linear_schedule_with_warmup, {"num_training_steps": STEPS}),
        ({"kind": "constant"}, get_constant_schedule_with_warmup, {}),
        (
            {
                "kind": "wsd",
                "start_lr": "3e-5",
                "min_lr": "3e-5",
                "decay": 40 * TOKENS,
                "decay_shape": "linear",
            },
            get_wsd_schedule,
            {
                "num_decay_steps": 40,
                "num_training_steps": STEPS,
                "min_lr_ratio": 0.1,
                "warmup_type": "linear",
                "decay_type": "linear",
            },
        ),
    ],
    ids=["cosine", "linear", "constant", "wsd"],
)
def test_same_lr_at_every_step_as_transformers(fields, build, options):
    ours = schedule(max_lr="3e-4", warmup=WARM * TOKENS, **fields)
    steps = np.arange(STEPS)
    np.testing.assert_allclose(
        Curve(ours, STEPS * TOKENS)(steps * TOKENS), theirs(build, **options), rtol=1e-12, atol=1e-18
    )
