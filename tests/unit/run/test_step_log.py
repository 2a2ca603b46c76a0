"""The step log: sums since the last line, sources by name, and disks and gradients that fail."""

import math

import pytest

from tests.helpers.mixer_recipes import recipe_of
from tokenization.errors import InfrastructureError
from trainer.metrics import names


def test_a_line_has_the_losses_since_the_last_one(step_log):
    run = step_log("logging.every_steps=2")
    run.step((30.0, 10), (8.0, 4), (0.0, 0))
    assert run.records() == []
    run.step((10.0, 10), (0.0, 0), (0.0, 0), grad_norm=2.5)
    (record,) = run.records()
    assert record[names.LOSS] == 48 / 24
    assert (record["loss/source/zh"], record["loss/source/en"]) == (40 / 20, 8 / 4)
    assert "loss/source/law" not in record  # of no token, there is no mean
    assert (record[names.GRAD_NORM], record[names.SAMPLES_CRC32], record["tokens"]) == (2.5, 7, 200)
    # 20 samples of 10 tokens were drawn, 3 of 4 from zh, which has 1,000 samples.
    assert (record["tokens/source/zh"], record["tokens/source/en"]) == (150, 50)
    assert record["epochs/source/zh"] == 15 / 1000
    run.step((5.0, 10), (0.0, 0), (0.0, 0), write=False)
    run.step((5.0, 10), (0.0, 0), (0.0, 0))
    assert run.records()[-1][names.LOSS] == 0.5


def test_sources_may_have_the_names_of_totals(step_log):
    recipe = recipe_of(
        {"train": "new", "skipped": "replay"},
        ["train: 3/4, skipped: 1/4"],
        samples=[100],
        logging="{tensorboard: false}",
    )
    run = step_log(recipe=recipe)
    run.step((30.0, 10), (2.0, 10))
    run.step((30.0, 10), (2.0, 10), applied=False)
    first, second = run.records()
    assert first[names.LOSS] == 1.6
    assert (first[names.source_loss("train")], first[names.source_loss("skipped")]) == (3.0, 0.2)
    assert names.SKIPPED_TOKENS not in first
    assert second[names.SKIPPED_TOKENS] == recipe.tokens_per_step
    assert second[names.source_tokens("skipped")] <= recipe.tokens_per_step


def test_an_evaluation_makes_a_line_due_even_before_the_first_step(step_log):
    run = step_log("logging.every_steps=5")
    run.log.add_evaluation({names.UPSTREAM: 1.5})
    run.log.write_if_due(run.state)
    (record,) = run.records()
    assert (record["step"], record[names.UPSTREAM]) == (0, 1.5)
    assert names.LOSS not in record
    run.step((1.0, 1), (1.0, 1), (1.0, 1))
    assert len(run.records()) == 1


def test_the_tokens_of_skipped_steps_are_recorded(step_log):
    run = step_log()
    run.step((1.0, 1), (1.0, 1), (1.0, 1), applied=False, grad_norm=math.inf)
    (record,) = run.records()
    assert (record[names.SKIPPED_TOKENS], record[names.GRAD_NORM]) == (100, math.inf)


def test_the_time_of_the_last_save_is_written_at_the_end_and_nothing_else(step_log):
    run = step_log("logging.every_steps=2")
    run.step((1.0, 1), (1.0, 1), (1.0, 1))
    run.log.close(run.state)
    assert run.records() == []
    run.log.pending[names.SAVE_S] = 2.0
    run.log.close(run.state)
    (record,) = run.records()
    assert set(record) == {"attempt", "time", "step", "tokens", names.SAVE_S}


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_disk_that_refuses_metrics_is_said_once_until_it_accepts_them(step_log, log_lines, monkeypatch):
    run = step_log("checkpoint.on_failure=continue")
    with monkeypatch.context() as disk:
        disk.setattr(run.metrics, "log", full)
        for _ in range(2):
            run.step((1.0, 1), (1.0, 1), (1.0, 1))
    (line,) = log_lines
    assert line.startswith("step 1 cannot be recorded: No space left on device; keeping metrics in memory")
    run.step((1.0, 1), (1.0, 1), (1.0, 1))
    monkeypatch.setattr(run.metrics, "log", full)
    run.step((1.0, 1), (1.0, 1), (1.0, 1))
    assert log_lines[1].startswith("step 4 cannot be recorded")


def test_a_disk_that_refuses_metrics_ends_a_run_that_stops_at_failures(step_log, monkeypatch):
    run = step_log("checkpoint.on_failure=stop")
    monkeypatch.setattr(run.metrics, "log", full)
    with pytest.raises(
        InfrastructureError, match=r"step 1 cannot be recorded: .*; last good checkpoint: none"
    ):
        run.step((1.0, 1), (1.0, 1), (1.0, 1))
