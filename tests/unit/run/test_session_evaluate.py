"""What forgetting is measured against: the base's score on the same text, from before the first step."""

import contextlib
from types import SimpleNamespace

import pytest

from trainer.evaluation.held_out import Baseline
from trainer.run import session as sessions
from trainer.run.session import Session


def store(fingerprint):
    return SimpleNamespace(tokens=101, fingerprint=fingerprint)


@pytest.fixture
def score(monkeypatch):
    """Evaluates one set at a step, where the model has so many bits per byte; what is noted and kept."""

    def measure(bits, step, upstream, baseline, max_tokens=None):
        found = SimpleNamespace(bits_per_byte=bits, nats_per_token=1.0)
        monkeypatch.setattr(sessions, "evaluate", lambda *_, **__: found)
        session = object.__new__(Session)
        session.__dict__.update(
            recipe=SimpleNamespace(seq_len=10, validation=SimpleNamespace(max_tokens=max_tokens)),
            state=SimpleNamespace(step=step),
            validation={"upstream": store(upstream)},
            throughput=SimpleNamespace(paused=contextlib.nullcontext),
            saver=SimpleNamespace(rank=0, world_size=1),
            engine=None,
            micro_batch_size=1,
            baseline=baseline,
            noted={},
        )
        session.evaluate()
        return session.noted.get("eval/upstream/forgetting"), session.baseline

    return measure


def test_forgetting_is_measured_against_the_base_on_the_same_set(score):
    forgotten, kept = score(2.0, 0, "a", {})
    assert forgotten == 0.0
    assert score(2.5, 7, "a", kept) == (0.5, kept)


@pytest.mark.parametrize("changed", [{"upstream": "b"}, {"upstream": "a", "max_tokens": 50}])
def test_another_set_has_no_forgetting_and_the_first_one_may_come_back(score, changed):
    _, kept = score(2.0, 0, "a", {})
    assert score(1.0, 7, baseline=dict(kept), **changed) == (None, kept)
    assert score(2.5, 8, "a", kept)[0] == 0.5


def test_a_set_that_is_added_to_a_run_has_no_score_of_the_base(score):
    assert score(2.0, 7, "a", {}) == (None, {})


def test_a_bare_score_of_an_older_checkpoint_counts(score):
    assert score(2.5, 7, "a", {"upstream": Baseline.from_json(2.0)})[0] == 0.5
