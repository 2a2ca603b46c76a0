"""The log on standard error: rank 0 speaks for all, and a progress bar is not torn."""

import logging
import os
from pathlib import Path

import pytest

from trainer.machine import log_lines as log
from trainer.machine.log_lines import EVERY_RANK, logger


@pytest.fixture
def shown(capsys):
    """What standard error shows of a record, by rank."""

    def show(rank, level, message, **options):
        log.show_log_lines(rank)
        logger.log(level, message, **options)
        return capsys.readouterr().err.splitlines()

    yield show
    log.show_log_lines(0)


def test_rank_0_shows_all_but_debugging_and_each_line_has_the_prefix(shown):
    assert shown(0, logging.INFO, "decided  start\nphase-1") == ["rewarm: decided  start", "rewarm: phase-1"]
    assert shown(0, logging.WARNING, "a spike") == ["rewarm: a spike"]
    assert shown(0, logging.DEBUG, "detail") == []


def test_other_ranks_show_errors_and_what_is_about_them_alone(shown):
    assert shown(3, logging.WARNING, "every rank sees this") == []
    assert shown(3, logging.WARNING, "removed a lock", extra=EVERY_RANK) == ["rewarm: rank 3: removed a lock"]
    assert shown(3, logging.ERROR, "failed") == ["rewarm: rank 3: failed"]


def test_a_line_is_shown_once_however_often_the_log_is_set_up(shown):
    shown(0, logging.INFO, "first")
    assert shown(0, logging.INFO, "second") == ["rewarm: second"]


def test_a_handler_of_the_user_gets_levels(shown):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        shown(0, logging.WARNING, "careful")
    finally:
        logger.removeHandler(handler)
    assert [(record.name, record.levelname) for record in records] == [("rewarm", "WARNING")]


@pytest.fixture
def kept(tmp_path, shown):
    """The log that a rank keeps, after what the test has logged."""
    path = tmp_path / "logs" / "rank-0003.log"
    log.show_log_lines(3)
    log.keep_log(path)
    yield lambda: path.read_text(encoding="utf-8").splitlines()
    log.keep_log(None)


def test_a_rank_keeps_what_it_does_not_show(kept, shown):
    assert shown(3, logging.INFO, "seen by rank 3") == []
    shown(3, logging.DEBUG, "detail")
    log.file_handler.write("Traceback …")
    start, line, trace = kept()
    assert start.startswith("--- ")
    assert f"process {os.getpid()} on " in start
    assert line.endswith(" INFO seen by rank 3")
    assert trace == "Traceback …"


def test_every_start_appends(kept, shown, tmp_path):
    shown(0, logging.WARNING, "first")
    log.keep_log(tmp_path / "logs" / "rank-0003.log")
    shown(0, logging.WARNING, "second")
    assert [line.split()[-1] for line in kept() if not line.startswith("---")] == ["first", "second"]


def test_a_log_that_the_disk_refuses_is_said_and_ends_nothing(shown, tmp_path, capsys):
    (tmp_path / "logs").write_text("a file")
    log.show_log_lines(0)
    log.keep_log(tmp_path / "logs" / "rank-0000.log")
    assert "the log cannot be kept" in capsys.readouterr().err
    assert shown(0, logging.INFO, "goes on") == ["rewarm: goes on"]


def test_a_disk_that_fills_up_later_ends_nothing(shown):
    log.keep_log(Path("/dev/full"))
    try:
        assert shown(0, logging.INFO, "goes on") == ["rewarm: goes on"]
        log.file_handler.write("and on")
    finally:
        log.keep_log(None)
