"""Small parts of a run, all of them real."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers import scheduler_runs
from tests.helpers.mixer_recipes import sizes_of
from trainer.engine.result import StepResult
from trainer.metrics.jsonl import read_metrics
from trainer.metrics.log import Metrics
from trainer.metrics.throughput import Throughput
from trainer.mixer.mixture import Mixture
from trainer.recipe.schema import Recipe
from trainer.run.step_log import StepLog
from trainer.scheduler.state import RunState


@dataclass
class Logged:
    """A step log, its run's position, and where its lines go."""

    log: StepLog
    metrics: Metrics
    recipe: Recipe
    state: RunState
    folder: Path

    def step(self, *sources, applied=True, grad_norm=1.0, write=True):
        """Take a step in which each source has these (nats, target tokens)."""
        nats, targets = torch.tensor(sources, dtype=torch.float64).T
        batch = self.recipe.global_batch_size
        self.state = self.state.after_step(batch, lr=self.state.next_lr, trained=applied)
        numbers = (torch.tensor(float(one)) for one in (grad_norm, 0.0))
        skip = torch.tensor(not applied)
        norm, stop = numbers
        result = StepResult.pack(norm, skip, stop, torch.stack([nats, targets]), torch.zeros(1).double())
        self.log.add_step(self.state, result, samples_crc32=7)
        if write:
            self.log.write_if_due(self.state)

    def records(self):
        """What has been written, as it is read back."""
        return read_metrics(self.folder)


@pytest.fixture
def step_log(tmp_path):
    """Make a step log of a recipe on `zh`, `en` and `law`, or of the given one."""
    opened = []

    def make(*edits, recipe=None):
        recipe = recipe or scheduler_runs.recipe(edits=["logging.tensorboard=false", *edits])
        sizes = sizes_of(dict.fromkeys(recipe.sources, 1000), recipe.seq_len)
        metrics = Metrics(
            tmp_path, recipe.logging, rank=0, name="run", total_tokens=10**4, stream=io.StringIO()
        )
        opened.append(metrics)
        mixture = Mixture.from_recipe(recipe, sizes)
        log = StepLog(metrics, recipe, mixture, Throughput(), lambda: "last good checkpoint: none")
        return Logged(log, metrics, recipe, scheduler_runs.begun(recipe), tmp_path)

    yield make
    for metrics in opened:
        metrics.close()
