"""Throughput of the training alone."""

import pytest

from tests.helpers.metrics import Clock
from trainer.metrics.throughput import Throughput


def test_throughput_leaves_evaluation_out():
    clock = Clock()
    meter = Throughput(flops_per_token=6e9, peak_flops=1e13, clock=clock)
    for _ in range(4):
        clock.now += 0.5
        meter.step(1000, data_wait_s=0.01)
    with meter.paused():
        clock.now += 60
    measured = meter.read()
    assert measured["perf/tokens_per_s"] == pytest.approx(2000)
    assert measured["perf/step_s"] == pytest.approx(0.5)
    assert measured["perf/data_wait_s"] == pytest.approx(0.01)
    assert measured["perf/mfu"] == pytest.approx(2000 * 6e9 / 1e13)
    assert measured["mem/peak_gib"] > 0.01
    clock.now += 1
    meter.step(500)
    assert meter.read()["perf/tokens_per_s"] == pytest.approx(500)


def test_no_mfu_for_an_unknown_device_and_nothing_before_the_first_step():
    clock = Clock()
    meter = Throughput(flops_per_token=6e9, clock=clock)
    assert meter.read() == {}
    clock.now += 1
    meter.step(10)
    assert "perf/mfu" not in meter.read()
