"""What a session does at a position: what is made up for when a run starts there."""

from types import SimpleNamespace

import pytest

from trainer.metrics import names
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
