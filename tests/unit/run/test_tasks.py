"""Rank 0 asks and all ranks answer: what goes wrong on rank 0 alone is known to all of them."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers import scheduler_runs
from tokenization.errors import UserError
from trainer.evaluation.answers import Row
from trainer.machine.ranks import World
from trainer.run import tasks as run_tasks
from trainer.run.tasks import TaskEvaluation
from trainer.run.validation import ValidationSets


class Ranks:
    """Two ranks in threads, which broadcast and add up; each has the same model."""

    def __init__(self, monkeypatch, asks, stop_at=None):
        self.meeting, self.values = threading.Barrier(2, timeout=30), [0.0, 0.0]
        self.box, self.own, self.looks, self.stop_at = queue.Queue(), threading.local(), [0, 0], stop_at
        recipe = scheduler_runs.recipe(edits=["validation.tasks={names: [law]}"])
        self.plan = SimpleNamespace(recipe=recipe, model_config={"max_position_embeddings": 64})
        monkeypatch.setattr(run_tasks.collectives, "broadcast", self.broadcast)
        monkeypatch.setattr(run_tasks, "harness_model", lambda tokenizer, context, answer, go_on: answer)
        monkeypatch.setattr(run_tasks, "answer_tasks", lambda answer, tasks: asks(answer))
        monkeypatch.setattr(TaskEvaluation, "_tokenizer", None)

    def broadcast(self, value):
        if self.own.rank == 0:
            self.box.put(value)
            return value
        return self.box.get(timeout=30)

    def total(self, tensor):
        self.meeting.wait()
        self.values[self.own.rank] = tensor
        self.meeting.wait()
        return self.values[0] + self.values[1]

    def stop_requested(self):
        self.looks[self.own.rank] += 1
        return self.own.rank == 1 and self.looks[1] == self.stop_at

    def answers(self, ids, targets, places):
        """Each scored token takes as many nats as its id."""
        return ids, np.take_along_axis(targets, places, axis=1).astype(float)

    def measure(self, rank, step):
        self.own.rank = rank
        sets = ValidationSets(
            SimpleNamespace(answers=self.answers), {}, self.plan.recipe, 1, World(rank, rank, 2), {},
            total=self.total, stop_requested=self.stop_requested,
        )  # fmt: skip
        return TaskEvaluation(self.plan, rank).measure(sets, step)

    def measure_on_both(self, step=7):
        with ThreadPoolExecutor(2) as both:
            return [one.result(60) for one in [both.submit(self.measure, rank, step) for rank in (0, 1)]]


ROWS = [Row([1, 2, 3 + place], 2) for place in range(20)]


def law(answer):
    found = answer(ROWS, True)
    return {"law": {"nats,none": float(found[:, 0].sum()), "sample_len": 20, "alias": 0.0}}


def test_all_ranks_know_the_numbers(monkeypatch):
    expected = sum(2 + 3 + place for place in range(20))
    assert Ranks(monkeypatch, law).measure_on_both() == [{"tasks/law/nats": expected}] * 2


def test_what_fails_on_rank_0_is_a_warning_later_on_and_ends_the_run_at_its_start(monkeypatch, caplog):
    def missing(answer):
        answer(ROWS, True)
        raise OSError("questions.json\nis not there")

    assert Ranks(monkeypatch, missing).measure_on_both() == [{}, {}]
    line = "validation.tasks: they cannot be answered (OSError: questions.json is not there)"
    assert line in caplog.text
    with pytest.raises(UserError, match=r"validation\.tasks: cannot be answered \(OSError: questions"):
        Ranks(monkeypatch, missing).measure_on_both(step=0)


@pytest.mark.parametrize("asked_at", [1, 2])
def test_a_signal_cuts_it_short_on_all_ranks(monkeypatch, asked_at):
    assert Ranks(monkeypatch, law, stop_at=asked_at).measure_on_both() == [None, None]


def test_an_error_of_the_model_is_not_taken_for_one_of_the_tasks(monkeypatch):
    """The other ranks are in the middle of what all do together and cannot be told."""
    ranks = Ranks(monkeypatch, law)
    ranks.total = lambda tensor: tensor

    def broken(*_):
        raise torch.OutOfMemoryError("no memory")

    ranks.answers = broken
    with pytest.raises(torch.OutOfMemoryError):
        ranks.measure(0, 7)
