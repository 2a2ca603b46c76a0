"""Metrics of small runs, for tests of what is made of them."""

import io

from trainer.metrics.log import Metrics
from trainer.recipe.schema import Logging

QUIET = Logging(tensorboard=False)


def train(run_dir, steps, *, restored_step=None, loss=lambda step: 1.0 / (step + 3), logging=QUIET):
    """One attempt: a loss per step, 10 tokens a step."""
    metrics = Metrics(
        run_dir,
        logging,
        rank=0,
        name="run",
        total_tokens=1000,
        restored_step=restored_step,
        stream=io.StringIO(),
    )
    for step in steps:
        metrics.log(step, step * 10, {"loss/train": loss(step)})
    metrics.close()


class Clock:
    """A clock that advances only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
