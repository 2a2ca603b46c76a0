"""The phases of a run, one after another: what a stop, a spike and a start do to what comes next."""

import contextlib
import signal
from types import SimpleNamespace

import pytest

from trainer.machine.signals import Signals
from trainer.run import phases
from trainer.run.phases import PhaseRunner


class Heart:
    """Keeps how the run ended."""

    ended = None

    def following(self, position, total):
        return contextlib.nullcontext()

    def end(self, state, why=None):
        self.ended = (state, why)


@pytest.fixture
def runner(monkeypatch):
    """A runner whose phases each end as `endings` says, while the signals in `came` arrive."""
    monkeypatch.setattr(phases.collectives, "all_gather", lambda value: [value])
    finished = SimpleNamespace(decision=SimpleNamespace(kind="finished", render=lambda: "finished"))
    monkeypatch.setattr(phases, "plan_together", lambda recipe, world: finished)
    made = PhaseRunner.__new__(PhaseRunner)
    made.plan = SimpleNamespace(
        decision=SimpleNamespace(kind="start"), mixture=SimpleNamespace(total_tokens=9)
    )
    made.recipe, made.world, made.signals, made.heartbeat = None, None, Signals(unsaved=False), Heart()
    made.opened, made.rolled_back, made.mirror = 0, 0, None

    def open_session():
        made.opened += 1
        return SimpleNamespace(
            position=None, steering=None, over_budget=None, out_of_budget=False, spike=None,
            state=SimpleNamespace(step=1), close=lambda: None, abandon=lambda: None,
        )  # fmt: skip

    def roll_back(session, spike):
        made.rolled_back += 1

    made._open_session, made._record_start, made._roll_back = open_session, lambda: None, roll_back
    return made


@pytest.mark.parametrize("stop", [None, signal.SIGUSR1])
def test_a_stop_that_comes_with_a_spike_ends_the_run_at_the_checkpoint(monkeypatch, runner, stop):
    # Otherwise a run that went back to its start left the base unscored, and trained a step.
    endings = iter(["spiked", "phase done"])

    def train_phase(session):
        ending = next(endings)
        if ending == "spiked":
            session.spike, runner.signals.received = "a spike", stop
        return ending

    monkeypatch.setattr(phases.loop, "train_phase", train_phase)
    runner.train_phases()
    assert (runner.opened, runner.rolled_back) == (1 if stop else 2, 1)
    assert runner.heartbeat.ended == (("stopped", "SIGUSR1 at step 1") if stop else ("finished", None))
