"""What a session makes of saves that fail: it stops or goes on as the recipe says, and never ends unsaved."""

import contextlib
from types import SimpleNamespace

import pytest

from tests.helpers.checkpoints import fragments, position, savers
from tokenization.errors import InfrastructureError
from trainer.checkpoint import history, rank_files
from trainer.run import session as sessions
from trainer.run.session import Session


class Logged(list):
    def log(self, step, tokens, values):
        self.append((step, dict(values)))


@pytest.fixture
def open_session(tmp_path, monkeypatch):
    alone = SimpleNamespace(all_gather=lambda v: [v], broadcast=lambda v: v, all_reduce_sum=lambda t: t)
    monkeypatch.setattr(sessions, "collectives", alone)
    monkeypatch.setattr(Session, "_position", lambda self: position(self.state.step), raising=True)

    def start(on_failure="continue", asynchronous=True):
        owned = fragments()
        owned[0].owned = True
        nothing = SimpleNamespace(close=lambda: None)
        (saver,) = savers(tmp_path / "checkpoints", asynchronous=asynchronous)
        said = []
        session = Session(
            recipe=SimpleNamespace(
                checkpoint=SimpleNamespace(on_failure=on_failure), logging=SimpleNamespace(every_steps=1)
            ),
            state=SimpleNamespace(step=1, tokens=100),
            mixture=None,
            model_config={},
            engine=SimpleNamespace(shares=lambda: [owned], saved_bytes=1, close=lambda: None),
            loader=nothing,
            validation={},
            micro_batch_size=1,
            saver=saver,
            metrics=Logged(),
            throughput=SimpleNamespace(paused=contextlib.nullcontext),
            signals=None,
            watchdog=SimpleNamespace(beat=lambda doing: None),
            non_finite=None,
            spikes=None,
            say=said.append,
            versions={},
        )
        return session, said

    return start


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that is full until it is `mended`."""
    write = rank_files.write_rank_file
    state = SimpleNamespace(mended=False)

    def failing(path, mine):
        if not state.mended:
            raise OSError(28, "No space left on device")
        return write(path, mine)

    monkeypatch.setattr(rank_files, "write_rank_file", failing)
    return state


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_run_goes_on_after_a_failed_save_and_the_next_one_counts(open_session, full_disk, asynchronous):
    session, said = open_session("continue", asynchronous)
    session.save()
    session.state.step = 2
    full_disk.mended = not asynchronous
    session.save()  # with asynchronous saves it is told now that the one before has failed
    (line,) = said
    assert line.startswith("step 1 was not saved: ")
    assert "No space left on device" in line
    assert line.endswith("last good checkpoint: none")
    full_disk.mended = True
    session.state.step = 3
    session.save()
    session.close()
    good, _ = history.scan_checkpoints(session.saver.directory)
    assert good[-1].manifest.step == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_run_stops_at_a_failed_save_where_the_recipe_says_so(open_session, full_disk, asynchronous):
    session, _ = open_session("stop", asynchronous)

    def save_and_wait():
        session.save()
        session.finish_save()

    with pytest.raises(InfrastructureError, match=r"step 1 was not saved: .*No space left on device"):
        save_and_wait()


def test_a_save_that_failed_is_tried_again_at_the_same_step(open_session, full_disk):
    session, _ = open_session()
    session.save()
    session.finish_save()
    full_disk.mended = True
    session.save()
    session.close()
    assert [one.manifest.step for one in history.scan_checkpoints(session.saver.directory)[0]] == [1]


def test_no_phase_ends_unsaved(open_session, full_disk):
    session, said = open_session()
    session.save()
    with pytest.raises(InfrastructureError, match="ends unsaved at step 1"):
        session.close()
    assert len(said) == 1


def test_how_long_a_save_took_and_kept_the_training_waiting_is_logged(open_session):
    session, _ = open_session()
    session.save()
    session.engine.before_update()
    session.close()
    ((step, values),) = session.metrics
    assert step == 1
    assert values["perf/save_s"] >= values["perf/save_blocked_s"] - 0.5
    assert values.keys() == {"perf/save_s", "perf/save_blocked_s"}


def test_metrics_that_a_full_disk_does_not_take_end_the_run_or_are_said_once(open_session):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    def evaluated(session):
        session.metrics.log = refuse
        session.noted["eval/upstream/bits_per_byte"] = 1.0
        session.log()

    session, said = open_session("continue")
    evaluated(session)
    evaluated(session)
    (line,) = said
    assert line.startswith("step 1 cannot be recorded: No space left on device")
    session, _ = open_session("stop")
    with pytest.raises(InfrastructureError, match=r"step 1 cannot be recorded: .*; last good checkpoint"):
        evaluated(session)
