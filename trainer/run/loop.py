"""The training loop, to be read aloud."""

from __future__ import annotations

from typing import Literal

from trainer.mixer.permutation import key_of
from trainer.run.session import Session

Ending = Literal["phase done", "stopped"]


def train_phase(session: Session) -> Ending:
    """Train until the phase's budget is used, or until a signal or `stop_after` ends the run early.

    Whatever the ending, the last step is saved and committed. A validation that a stop leaves out is made
    up for when the run goes on.
    """
    recipe, engine, loader = session.recipe, session.engine, session.loader
    while not session.state.phase_done:
        state, lr = session.state, session.state.next_lr
        batch = loader.step(state.phase, state.samples, recipe.batch_of(state.phase))
        result = engine.train_step(
            batch,
            lr,
            sources=len(recipe.sources),
            seed=key_of("step", recipe.seed, state.step),
            stop=session.signals.stop_requested,
        )
        session.advance(lr, result)
        stop = result.stop
        if not stop and (session.due(recipe.validation.every_tokens) or session.state.phase_done):
            stop = not session.evaluate()
        session.step_log.write_if_due(session.state)
        if session.due(recipe.checkpoint.every_tokens) or session.state.phase_done:
            session.save()
        if stop or session.out_of_budget:
            session.save()
            return "stopped"
    return "phase done"
