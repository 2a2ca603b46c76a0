"""The training loop, to be read aloud."""

from __future__ import annotations

from typing import Literal

from trainer.run.session import Session

Ending = Literal["phase done", "stopped", "spiked"]


def train_phase(session: Session) -> Ending:
    """Train until the phase's budget is used, or until a signal or `stop_after` ends the run early.

    Whatever the ending, the last step is saved and committed. A validation that a stop leaves out is made
    up for when the run goes on. Only a spike that is rolled back leaves its steps unsaved. The host waits for
    the device where something is due, and nowhere else.
    """
    recipe = session.recipe
    while not session.state.phase_done and not session.over_budget:
        if session.leaves_out:
            session.pass_over()
        else:
            session.train_step()
        if session.something_due:
            session.settle()
        if session.spike is not None:
            return "spiked"
        stop = session.stop_agreed
        if not stop and (session.due(recipe.validate_every) or session.state.phase_done):
            stop = not session.evaluate()
        if not stop and session.tasks_due:
            stop = not session.evaluate_tasks()
        if not stop and session.decision_due:
            stop = not session.decide_replay()
        session.step_log.write_if_due(session.state)
        if session.due(recipe.save_every) or session.state.phase_done:
            session.save()
        if stop or session.out_of_budget or session.over_budget:
            session.save()
            return "stopped"
    return "phase done"
