"""Saves that fail: the run stops or goes on as the recipe says, and never ends unsaved."""

import contextlib

import pytest
import torch

from tests.helpers.checkpoints import fragments, position, savers
from tests.helpers.fragments import fragment
from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint import history, rank_files
from trainer.metrics import names
from trainer.metrics.throughput import Throughput
from trainer.run.saving import Saves


class Run:
    """The saves of a run, step after step."""

    def __init__(self, folder, step_log, on_failure, asynchronous):
        (self.saver,) = savers(folder / "checkpoints", asynchronous=asynchronous)
        self.log = step_log
        self.saves = Saves(self.saver, step_log, Throughput(), on_failure=on_failure, model_config={})

    def save(self, step):
        self.saves.save(position(step), [fragments()], needed=1)

    def saved(self):
        return [one.manifest.step for one in history.scan_checkpoints(self.saver.directory)[0]]


@pytest.fixture
def start(tmp_path, step_log):
    return lambda on_failure="continue", asynchronous=True: Run(
        tmp_path, step_log().log, on_failure, asynchronous
    )


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full until its `full` is cleared."""

    class Disk:
        full = True

    write, disk = rank_files.write_rank_file, Disk()

    def write_or_fail(path, mine):
        if disk.full:
            raise OSError(28, "No space left on device")
        return write(path, mine)

    monkeypatch.setattr(rank_files, "write_rank_file", write_or_fail)
    return disk


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_run_goes_on_after_a_failed_save_and_the_next_one_counts(start, disk, log_lines, asynchronous):
    run = start("continue", asynchronous)
    run.save(1)
    disk.full = asynchronous
    run.save(2)  # an asynchronous save is known to have failed only now
    (line,) = log_lines
    assert line.startswith("step 1 was not saved: ")
    assert "No space left on device" in line
    assert line.endswith("last good checkpoint: none")
    disk.full = False
    run.save(3)
    run.saves.close(3)
    assert run.saved()[-1] == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_run_stops_at_a_failed_save_where_the_recipe_says_so(start, disk, asynchronous):
    run = start("stop", asynchronous)

    def save_and_finish():
        run.save(1)
        run.saves.finish_save()

    with pytest.raises(InfrastructureError, match=r"step 1 was not saved: .*No space left on device"):
        save_and_finish()


def test_a_directory_that_cannot_be_made_is_a_failed_save(start, log_lines):
    run = start()
    run.saver.directory.write_text("a file")
    run.save(1)
    (line,) = log_lines
    assert line.startswith("step 1 was not saved: ")
    assert run.saves.saved_step == -1


def test_a_save_that_failed_is_tried_again_at_the_same_step(start, disk):
    run = start()
    run.save(1)
    run.saves.finish_save()
    disk.full = False
    run.save(1)
    run.saves.close(1)
    assert run.saved() == [1]


def test_metrics_are_flushed_before_a_checkpoint_can_know_of_them(start, disk, monkeypatch):
    disk.full = False
    run, order = start(asynchronous=False), []
    write = rank_files.write_rank_file
    monkeypatch.setattr(run.log, "flush", lambda: order.append("flush"))
    monkeypatch.setattr(rank_files, "write_rank_file", lambda *args: order.append("write") or write(*args))
    run.save(1)
    assert order == ["flush", "write"]
    assert run.saved() == [1]


def test_what_the_training_waits_for_is_shown(start, disk):
    disk.full = False
    run, shown = start(), []

    @contextlib.contextmanager
    def show():
        shown.append("saving")
        yield
        shown.append("running")

    run.saves = Saves(run.saver, run.log, Throughput(), on_failure="stop", model_config={}, shown=show)
    run.save(1)
    run.saves.close(1)
    assert shown == ["saving", "running"] * 2, "its beginning and its end; it is written beside the training"


def test_a_saved_step_is_not_saved_again(start, disk):
    run = start()
    run.saves.saved_step = 7
    run.save(7)
    assert not run.saver.under_way
    run.saves.close(7)


def test_only_what_this_rank_owns_is_written(start):
    run = start()
    ours, others = fragments(0), fragments(1)
    others[0].owned = False
    run.saves.save(position(1), [ours + others], needed=1)
    run.saves.close(1)
    (checkpoint,) = history.scan_checkpoints(run.saver.directory)[0]
    assert set(checkpoint.manifest.weights) == {"w0"}


def test_no_phase_ends_unsaved(start, disk, log_lines):
    run = start()
    run.save(1)
    with pytest.raises(InfrastructureError, match="ends unsaved at step 1"):
        run.saves.close(1)
    assert len(log_lines) == 1


def test_how_long_a_save_took_and_kept_the_training_waiting_is_logged(start):
    run = start()
    run.save(1)
    run.saves.wait_for_snapshot()
    run.saves.close(1)
    assert run.log.pending.keys() == {names.SAVE_S, names.SAVE_BLOCKED_S}
    assert run.log.pending[names.SAVE_BLOCKED_S] == run.saves.blocked_s > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("on_failure", ["stop", "continue"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_weights_that_are_not_numbers_are_never_committed_and_no_requeue_can_help(
    start, bad, on_failure, asynchronous
):
    run = start(on_failure, asynchronous)
    run.save(1)
    run.saves.finish_save()
    weight = torch.tensor([1.0, bad, 3.0])

    def save_and_finish():
        run.saves.save(position(2), [[fragment("w", 0, (3,), True, {"weight": weight})]], needed=1)
        run.saves.finish_save()

    told = (
        r"step 2 was not saved: w holds weights that are not finite .*last good checkpoint: .*step-00000001"
    )
    with pytest.raises(UserError, match=told):
        save_and_finish()
    assert run.saved() == [1]
