"""What a session does at a position: what is made up for when a run starts there."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trainer.metrics import names
from trainer.metrics.throughput import Throughput
from trainer.run.session import Session


def test_what_is_made_up_for_is_written_before_a_signal_can_end_the_next_part(step_log):
    logged = step_log("logging.every_steps=7")
    logged.step((3.0, 2), (0.0, 0), (0.0, 0))  # of a step at which no line is due

    def evaluate():
        logged.log.add_evaluation({names.UPSTREAM: 1.5})
        return True

    def evaluate_tasks():
        raise SystemExit(75)

    session = SimpleNamespace(
        evaluate=evaluate, evaluate_tasks=evaluate_tasks, step_log=logged.log, state=logged.state,
        decision_due=False,
    )  # fmt: skip
    with pytest.raises(SystemExit):
        Session.make_up(session, True, True)
    assert [record[names.UPSTREAM] for record in logged.records()] == [1.5]


def test_nothing_is_written_where_nothing_is_missing_or_a_stop_has_cut_it_short(step_log):
    logged = step_log("logging.every_steps=1")
    cut = SimpleNamespace(
        evaluate=lambda: False, evaluate_tasks=lambda: False, step_log=logged.log, state=logged.state,
        decision_due=False,
    )  # fmt: skip
    for missing in (True, False):
        Session.make_up(cut, missing, missing)
    assert logged.records() == []


class Averaging:
    """An engine whose weights are exchanged for their average while a block runs."""

    weights = "last"

    @contextlib.contextmanager
    def averaged(self):
        self.weights = "averaged"
        yield
        self.weights = "last"


def session_of(step_log, measure, *, average="{kind: ema, half_life: 1e5}", step=1):
    """A session whose tasks and validation are `measure` of the weights that the engine computes with."""
    logged, engine = step_log(*([f"model.average={average}"] if average else [])), Averaging()
    asked = SimpleNamespace(measure=lambda *_: measure(engine.weights))
    session = Session.__new__(Session)
    session.recipe, session.engine, session.tasks, session.validation = logged.recipe, engine, asked, asked
    session.state, session.step_log = replace(logged.state, step=step), logged.log
    session.throughput, session.prompts = Throughput(), None
    session.watchdog = SimpleNamespace(beat=lambda *_, **__: None)
    return session


BY_WEIGHTS = {"last": {"tasks/law/acc": 0.25}, "averaged": {"tasks/law/acc": 0.5}}


@pytest.mark.parametrize("what", [Session.evaluate, Session.evaluate_tasks])
@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, {"tasks/law/acc": 0.25, "average/tasks/law/acc": 0.5}),
        ({"step": 0}, {"tasks/law/acc": 0.25}),  # the average is the weights
        ({"average": None}, {"tasks/law/acc": 0.25}),
    ],
)
def test_averaged_weights_are_measured_beside_the_weights(step_log, what, changes, numbers):
    session = session_of(step_log, BY_WEIGHTS.get, **changes)
    assert what(session)
    assert session.step_log.pending == numbers
    assert session.engine.weights == "last"


@pytest.mark.parametrize("what", [Session.evaluate, Session.evaluate_tasks])
@pytest.mark.parametrize("cut", ["last", "averaged"])
def test_what_a_signal_cuts_short_of_either_weights_is_not_logged(step_log, log_lines, what, cut):
    session = session_of(step_log, lambda weights: None if weights == cut else BY_WEIGHTS[weights])
    assert not what(session)
    assert session.step_log.pending == {}
    (line,) = log_lines
    assert "cut short by a signal" in line


def test_tasks_that_the_average_cannot_answer_leave_the_numbers_of_the_weights(step_log):
    session = session_of(step_log, lambda weights: {} if weights == "averaged" else BY_WEIGHTS[weights])
    assert session.evaluate_tasks()
    assert session.step_log.pending == BY_WEIGHTS["last"]
