"""What forgetting is measured against: the base's score on the same text, from before the first step."""

import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers import scheduler_runs
from trainer.evaluation.held_out import Baseline
from trainer.machine.ranks import World
from trainer.metrics import names
from trainer.metrics.log import Metrics
from trainer.recipe.schema import Logging
from trainer.run import validation
from trainer.run.validation import ValidationSets, tasks_are_missing, validation_is_missing


@dataclass
class Text:
    """A validation set of 100 target tokens in 100 bytes."""

    fingerprint: str
    tokens: int = 101
    utf8_bytes = 100

    def read(self, start, count):
        return np.zeros(count, dtype=np.int64)


@dataclass
class Model:
    """Needs so many bits for each token, which is a byte."""

    bits: float

    def score(self, micro):
        targets = torch.from_numpy((micro.targets >= 0).sum(axis=1)).double()
        return targets * self.bits * math.log(2), targets


def measure(bits, step, upstream, baseline, max_tokens="null"):
    """Forgetting as it is measured at a step, and the baseline that is kept."""
    recipe = scheduler_runs.recipe(edits=[f"validation.max_tokens={max_tokens}"])
    stores = {"upstream": Text(upstream)}
    validation = ValidationSets(Model(bits), stores, recipe, 2, World(), baseline, total=lambda alone: alone)
    found = validation.measure(step)
    assert found[names.UPSTREAM] == pytest.approx(bits)
    assert found[names.stream_nats_per_token("upstream")] == pytest.approx(bits * math.log(2))
    return found.get(names.FORGETTING), validation.baseline


def test_forgetting_is_measured_against_the_base_on_the_same_set():
    forgotten, kept = measure(2.0, 0, "a", {})
    assert forgotten == 0.0
    assert measure(2.5, 7, "a", kept) == (pytest.approx(0.5), kept)


@pytest.mark.parametrize("changed", [{"upstream": "b"}, {"upstream": "a", "max_tokens": 50}])
def test_another_set_has_no_forgetting_and_the_first_one_may_come_back(changed):
    _, kept = measure(2.0, 0, "a", {})
    assert measure(1.0, 7, baseline=dict(kept), **changed) == (None, kept)
    assert measure(2.5, 8, "a", kept)[0] == pytest.approx(0.5)


def test_a_set_that_is_added_to_a_run_has_no_score_of_the_base():
    assert measure(2.0, 7, "a", {}) == (None, {})


def test_a_bare_score_of_an_older_checkpoint_counts():
    assert measure(2.5, 7, "a", {"upstream": Baseline.from_json(2.0)})[0] == pytest.approx(0.5)


SETS = (
    "validation.sets={wiki: {path: w, role: upstream, weight: 3}, news: {path: n, role: upstream}, "
    "law: {path: l, role: downstream}}"
)


def measure_sets(step, bits, baseline):
    """All metrics of a step, where the model needs so many bits for the tokens of each set."""
    recipe = scheduler_runs.recipe(edits=[SETS])
    stores = {name: Text(name) for name in recipe.validation.paths}

    class PerSet:
        def score(self, micro):
            return Model(next(queue)).score(micro)

    batches = -(-100 // (2 * scheduler_runs.SEQ_LEN))
    queue = iter([bits[name] for name in stores for _ in range(batches)])
    sets = ValidationSets(PerSet(), stores, recipe, 2, World(), dict(baseline), total=lambda alone: alone)
    return sets.measure(step), sets.baseline


def test_each_set_has_its_scores_and_a_role_their_weighted_mean():
    begin = {"upstream/wiki": 2.0, "upstream/news": 4.0, "downstream/law": 6.0}
    found, base = measure_sets(0, begin, {})
    assert found[names.UPSTREAM] == pytest.approx((3 * 2.0 + 4.0) / 4)
    assert found[names.FORGETTING] == 0.0
    after = {"upstream/wiki": 2.5, "upstream/news": 3.5, "downstream/law": 5.0}
    found, _ = measure_sets(7, after, base)
    assert found["eval/upstream/wiki/bits_per_byte"] == pytest.approx(2.5)
    assert found["eval/upstream/wiki/forgetting"] == pytest.approx(0.5)
    assert found["eval/upstream/news/forgetting"] == pytest.approx(-0.5)
    assert found[names.UPSTREAM] == pytest.approx((3 * 2.5 + 3.5) / 4)
    assert found[names.FORGETTING] == pytest.approx((3 * 0.5 - 0.5) / 4)
    assert found[names.DOWNSTREAM] == found["eval/downstream/law/bits_per_byte"] == pytest.approx(5.0)
    assert "eval/downstream/law/forgetting" not in found


def test_a_mean_with_a_set_that_the_base_was_not_scored_on_has_no_forgetting():
    _, base = measure_sets(0, {"upstream/wiki": 2.0, "upstream/news": 4.0, "downstream/law": 6.0}, {})
    del base["upstream/news"]
    found, _ = measure_sets(7, {"upstream/wiki": 2.5, "upstream/news": 3.5, "downstream/law": 5.0}, base)
    assert names.UPSTREAM in found
    assert found["eval/upstream/wiki/forgetting"] == pytest.approx(0.5)
    assert names.FORGETTING not in found


def test_a_text_that_the_recipe_names_for_a_role_stays_its_score():
    recipe = scheduler_runs.recipe(edits=[SETS.replace(", weight: 3", ""), "validation.upstream=u"])
    assert set(recipe.validation.means()) == {"downstream"}
    assert list(recipe.validation.paths) == ["upstream", "upstream/wiki", "upstream/news", "downstream/law"]


def test_means_of_other_sets_or_weights_are_not_comparable():
    def on(*edits):
        recipe = scheduler_runs.recipe(edits=[SETS, *edits])
        stores = {name: Text(name) for name in recipe.validation.paths}
        return validation.measured_on_all(recipe, stores)["upstream"]

    assert on() == on("validation.sets.wiki.weight=6", "validation.sets.news.weight=2")
    assert on() != on("validation.sets.wiki.weight=2")
    assert on()["tokens"] == 202


@pytest.mark.parametrize(("asked_at", "batches"), [(1, 0), (2, 4), (3, 8), (None, 10)])
def test_a_signal_cuts_a_validation_short_on_all_ranks_after_the_same_batch(asked_at, batches):
    """A rank that went on alone would wait for ever for the others in the collectives of sharded weights."""
    recipe, meeting, values = scheduler_runs.recipe(edits=[]), threading.Barrier(2), [0.0, 0.0]
    scored, looks = [0, 0], [0, 0]

    @dataclass
    class Rank(Model):
        rank: int

        def score(self, micro):
            scored[self.rank] += 1
            return super().score(micro)

        def total(self, tensor):
            meeting.wait(30)
            values[self.rank] = tensor
            meeting.wait(30)
            return values[0] + values[1]

        def stop_requested(self):
            looks[self.rank] += 1
            return self.rank == 1 and looks[1] == asked_at

    def measure_on(rank):
        model = Rank(1.0, rank)
        sets = ValidationSets(
            model, {"upstream": Text("a", 201)}, recipe, 1, World(rank, rank, 2), {}, total=model.total,
            stop_requested=model.stop_requested,
        )  # fmt: skip
        return sets.measure(3)

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(measure_on, (0, 1)))
    assert [scores is None for scores in found] == [asked_at is not None] * 2
    assert scored == [batches, batches]


STEP = scheduler_runs.STEP
DUE, NOT_DUE, LAST = 20, 21, 100
"""Steps: a validation is due every ten, and a phase has 100."""


@pytest.mark.parametrize(
    ("step", "scored", "missing"),
    [
        (DUE, True, False),
        (DUE, False, True),  # a signal cut it short
        (NOT_DUE, False, False),
        (LAST, True, False),
        (LAST, False, True),  # the run is finished, and nothing else would score it
    ],
)
@pytest.mark.parametrize("every", [10 * STEP, 7000 * STEP], ids=["every ten steps", "at ends alone"])
@pytest.mark.parametrize("what", ["validation", "tasks"])
def test_an_evaluation_that_gave_way_to_a_stop_is_missing(
    monkeypatch, tmp_path, what, every, step, scored, missing
):
    monkeypatch.setattr(validation.collectives, "broadcast", lambda value: value)
    when, metric, is_missing = {
        "validation": (f"validation.every_tokens={every}", names.UPSTREAM, validation_is_missing),
        "tasks": (
            f"validation.tasks={{names: [a], every_tokens: {every}}}",
            "tasks/a/acc",
            tasks_are_missing,
        ),
    }[what]
    recipe = scheduler_runs.recipe(edits=[when, f"run_dir={tmp_path}"])
    state = scheduler_runs.trained(scheduler_runs.begun(recipe), step)
    metrics = Metrics(
        tmp_path, Logging(tensorboard=False), rank=0, name="a", total_tokens=1, stream=io.StringIO()
    )
    metrics.log(step, state.tokens, {names.LOSS: 1.0, **({metric: 1.0} if scored else {})})
    metrics.close()
    kind = "finished" if state.phase_done else "restore"
    plan = SimpleNamespace(
        decision=SimpleNamespace(state=state, kind=kind), recipe=recipe, validation={"upstream": None}
    )
    if every > LAST * STEP and step == DUE:
        missing = False
    assert is_missing(plan, World()) == missing
    plan.validation, plan.recipe = {}, scheduler_runs.recipe(edits=[])
    assert not is_missing(plan, World())
