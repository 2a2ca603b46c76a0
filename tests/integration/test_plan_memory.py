"""What `rewarm plan` expects of memory, beside what real ranks of the presets hold."""

import pytest

from benchmarks.plan import measured

pytestmark = pytest.mark.slow


def test_the_estimate_is_within_15_percent_of_the_measured_peak():
    (row,) = measured((("zero3", "fp32", 2, "none"),))
    assert abs(row.off) < 0.15, row
