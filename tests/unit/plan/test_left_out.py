"""The record of what a run passes over is read whole, or the run does not start."""

import json

import pytest

from tokenization.errors import UserError
from trainer.mixer.description import PassedOver
from trainer.plan.past import read_left_out, windows
from trainer.storage.run_directory import RunDirectory


def test_a_run_without_a_record_passes_over_nothing(tmp_path):
    assert windows(read_left_out(RunDirectory(tmp_path))) == []


def test_the_record_is_read(tmp_path):
    entries = [{"phase": 1, "start": 8, "stop": 16, "step": 3, "why": "loss spike", "samples": []}]
    (tmp_path / "left_out.json").write_text(json.dumps(entries))
    assert windows(read_left_out(RunDirectory(tmp_path))) == [PassedOver(1, 8, 16)]


@pytest.mark.parametrize(
    "text", ["", "[{]", '[{"phase": 0}]', "3", '[{"phase": 0, "start": null, "stop": 1}]']
)
def test_a_damaged_record_is_one_error(tmp_path, text):
    (tmp_path / "left_out.json").write_text(text)
    with pytest.raises(UserError, match=r"left_out\.json: is damaged"):
        read_left_out(RunDirectory(tmp_path))
