"""Between two lines of the log the host reads nothing of what the device computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import runs

pytestmark = pytest.mark.slow

WORKER = Path(__file__).resolve().parent / "host_reads_worker.py"
READS = {"0": 0, "1": 0, "2": 0, "3": 1}
"""Reads of a step at each ZeRO stage, as docs/performance.md says; that of stage 3 is of a host tensor."""


def test_a_step_is_not_waited_for(data, tmp_path):
    done = subprocess.run(
        [sys.executable, str(WORKER), str(data), str(tmp_path)],
        env=runs.environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {stage: one["status"] for stage, one in found.items()} == dict.fromkeys(READS, 0)
    for stage, one in found.items():
        assert one["reads"] == [READS[stage]] * 8, stage
        # The step whose gradients were not finite was skipped on the device, and the schedule heard of it.
        assert one["saved"]["adam_step"] == 7, stage
        state = one["saved"]["state"]
        assert state["tokens"] - state["trained_tokens"] == 256, stage
