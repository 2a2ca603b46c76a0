"""A step is the same however its batch is cut: gradients are summed in fp32 at every stage and precision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import runs

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("accumulation_worker.py")


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """The gradients' errors by dtype, and by preset and cut; see the worker."""
    out = tmp_path_factory.mktemp("errors") / "found.json"
    done = subprocess.run(
        [sys.executable, str(WORKER), str(out)],
        env=runs.environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_sum_of_many_micro_batches_is_as_good_as_one_made_in_fp64(errors, dtype):
    found = errors[dtype]
    by_hand = found.pop("by hand")  # what one row's gradient in 16 bits costs, and no more
    many = {name: error for name, error in found.items() if name.endswith(" in 32")}
    assert len(many) == 6
    for name, both_steps in many.items():
        assert both_steps == pytest.approx([by_hand, by_hand], rel=0.05), name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_more_micro_batches_do_not_add_error(errors, dtype):
    found = errors[dtype]
    for name in {name.split()[0] for name in found if " in " in name}:
        whole, many = (max(found[f"{name} in {parts}"]) for parts in (1, 32))
        assert many < 1.25 * whole, name


def test_fp32_is_fp32(errors):
    del errors["fp32"]["by hand"]
    for name, both_steps in errors["fp32"].items():
        assert max(both_steps) < 1e-6, name
