"""A phase is steered by its forgetting budget: when, on what, and what is written."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.mixer_recipes import recipe_of, sizes_of
from tokenization.errors import UserError
from trainer.metrics import names
from trainer.mixer.decisions import read_decisions
from trainer.mixer.mixture import Mixture
from trainer.run.steering import Steering, metrics_of
from trainer.scheduler.decide import decide

SAMPLES, EVERY = 400, 40


class Text:
    """Twenty documents of 17 tokens."""

    fingerprint, documents, tokens, utf8_bytes = "a", 20, 340, 1000

    def document_at(self, token):
        return token // 17

    def document_start(self, document):
        return document * 17


class Sets:
    """A validation that scores every piece with so many nats."""

    def __init__(self):
        self.stores, self.nats, self.stopped = {"upstream": Text()}, 10.0, False

    def score_documents(self, documents, doing, *, stoppable=True):
        if self.stopped and stoppable:
            return None
        return np.full(len(documents.starts), self.nats)


@pytest.fixture
def steered(tmp_path):
    """A steering, its validation, and the state before the first step."""
    mixture = f"forgetting_budget: 0.02, decide_every: {EVERY * 16}, measured_samples: 20"
    recipe = recipe_of(
        {"zh": "new", "en": "replay"},
        [mixture],
        samples=[SAMPLES],
        global_batch_size=8,
        validation="{every_tokens: 100, upstream: en}",
        run_dir=str(tmp_path),
    )
    mixture = Mixture.from_recipe(recipe, sizes_of({"zh": 10**5, "en": 10**5}))
    state = decide(recipe, [mixture.describe(0)], None).state
    sets = Sets()
    plan = SimpleNamespace(recipe=recipe, mixture=mixture, model_config={})
    return Steering.of(plan, SimpleNamespace(), sets, writes=True), sets, state


def at(state, samples):
    return replace(state, samples=samples, phase_trained_tokens=samples * 16, step=samples // 8)


def test_a_decision_is_due_once_at_each_multiple_even_if_it_was_missed(steered):
    steering, _, state = steered
    state = steering.begin(state)
    assert [steering.due(at(state, samples)) for samples in (0, 32, 40, 48)] == [False, False, True, True]
    decided = steering.decide(at(state, 48))
    assert [steering.due(at(decided, samples)) for samples in (48, 72, 80)] == [False, False, True]
    assert decided.decisions[0]["applies_from"] == 80


def test_forgetting_raises_the_replay_and_the_state_describes_the_new_samples(steered, tmp_path):
    steering, sets, state = steered
    state = at(steering.begin(state), 80)
    sets.nats = 11.0
    decided = steering.decide(state)
    found = steering.apply(decided)
    assert found[names.BUDGET_READING] > 0.02
    assert found[names.REPLAY_RATIO] > 0.25
    assert found == metrics_of(decided.decisions[-1])
    assert decided.running.data == steering.mixture.describe(0)
    assert [one.from_sample for one in decided.running.data.segments] == [0, 120]
    assert read_decisions(tmp_path / "decisions.jsonl") == list(decided.decisions)
    # A start from a checkpoint before the decision takes it back: it will be made again.
    steering.begin(state)
    assert (tmp_path / "decisions.jsonl").read_text() == ""


def test_a_signal_cuts_a_measurement_short_but_not_that_of_the_base(steered):
    steering, sets, state = steered
    sets.stopped = True
    state = steering.begin(state)
    assert state.measured["base"] == [10.0] * 20
    assert json.loads(json.dumps(state.to_json()))["measured"] == state.measured
    assert steering.decide(at(state, 40)) is None


def test_other_text_than_the_base_was_measured_on_is_refused(steered):
    steering, _, state = steered
    state = steering.begin(state)
    assert steering.begin(at(state, 40)) == at(state, 40)
    with pytest.raises(UserError, match=r"validation\.upstream: is other text"):
        steering.begin(replace(state, measured={**state.measured, "documents": "other"}))
