"""The commands of a run: what they say to do next."""

import shlex

import pytest

from trainer.cli.main import build_parser
from trainer.cli.runs import what_next
from trainer.metrics.heartbeat import queued_status, write_status


@pytest.mark.parametrize("state", ["running", "stopped", "failed", "finished"])
def test_a_run_is_called_complete_at_its_end_and_not_where_it_stopped(tmp_path, state):
    run = tmp_path / "a run"
    run.mkdir()
    assert what_next(run) is None
    write_status(run, queued_status(run) | {"state": state})
    line = what_next(run)
    assert (line is not None) == (state == "finished")
    for command in line.split("`")[1::2] if line else ():
        build_parser().parse_args(shlex.split(command)[1:])
