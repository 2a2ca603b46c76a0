"""`rewarm selftest`, under the real launcher: the trainer is right, and an error is named."""

from __future__ import annotations

import json
import re

import pytest

from tests.helpers import runs
from trainer.cli import selftest
from trainer.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))


def test_this_machine_trains_as_plain_pytorch_does(capfd):
    assert main(["selftest", "--stages", "3", "--gpus", "2", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    found = [one["trial"] for one in answer["findings"]]
    assert answer["problems"] == []
    wanted = [(ranks, dtype, parts) for ranks in (1, 2) for dtype in ("fp32", "bf16") for parts in (1, 4)]
    tried = [(one["ranks"], one["dtype"], one["micro_batches"]) for one in found]
    assert [one for one in tried if one[1] != "fp16"] == wanted
    assert {one["stage"] for one in found} == {3}


def test_a_rank_that_is_left_out_is_found_and_named(monkeypatch, capfd):
    monkeypatch.setattr(selftest, "WORKER", "tests.integration.planted_worker")
    assert main(["selftest", "--stages", "2", "--gpus", "2"]) == 1
    lines = capfd.readouterr().out.splitlines()
    alone = [line for line in lines if line.split()[0] == "1"]
    assert len(alone) == 4 + any("fp16" in line for line in lines) * 2
    assert all(line.endswith("ok") for line in alone), "one rank has no other to lose"
    half = re.compile(r"2 ranks: gradients are (0\.5|0\.500\d|0\.499\d) times plain PyTorch's")  # bf16 rounds
    named = [line for line in lines if half.search(line)]
    assert len(named) == len(alone)
    assert all("one of 2 ranks were left out: (W-1)/W" in line for line in named)
