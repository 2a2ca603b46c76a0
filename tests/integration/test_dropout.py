"""Dropout draws other masks on every rank, in every micro batch and step, and the same after a resume."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers import runs

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("dropout_worker.py")


def test_no_two_forward_passes_of_a_run_draw_the_same_masks(tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run(
        [*runs.launcher(2), str(WORKER), str(out)],
        env=runs.environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first, second, again = json.loads(out.read_text())
    losses = [loss for step in (first, second) for rank in step for loss in rank]
    assert len(set(losses)) == len(losses) == 2 * 2 * 2  # the rows are the same everywhere
    assert again == second
