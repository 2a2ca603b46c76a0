"""benchmarks/memory.py: the theory's numbers, and the peak that is read from the profiler's records."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import memory
from benchmarks.memory import THEORY, Case, Measured
from trainer.engine.ds_config import read_preset


@pytest.mark.parametrize(
    ("preset", "on_1", "on_4"),
    [
        ("zero0", 16, 16),
        ("zero1", 16, 7),  # 4 + 12/4
        ("zero2", 16, 5.5),  # 2 + 14/4
        ("zero3", 16, 4),
    ],
)
def test_the_paper_s_bytes_per_parameter(preset, on_1, on_4):
    assert (THEORY[preset].paper.on(1), THEORY[preset].paper.on(4)) == (on_1, on_4)


def test_every_preset_holds_less_between_steps_than_within_one():
    for preset, theory in THEORY.items():
        for ranks in (1, 2, 64):
            assert theory.held.on(ranks) <= theory.peak.on(ranks), preset


def test_ours_is_the_paper_s_with_gradients_in_fp32_or_more():
    for preset, theory in THEORY.items():
        for ranks in (1, 2, 64):
            assert theory.paper.on(ranks) <= theory.peak.on(ranks), preset


def test_the_peak_is_that_of_the_span_alone(tmp_path):
    elements = 250_000  # a million bytes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        larger = torch.zeros(8 * elements)
        del larger
        kept = torch.zeros(2 * elements)
        with record_function("span"):
            first = torch.zeros(3 * elements)
            del first
            second = torch.zeros(elements)
            del kept, second
        torch.zeros(9 * elements)
    profiled.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    begun, peak = memory.peak_of(events, "span")
    assert (begun, peak) == (2_000_000, 5_000_000)


def test_distinct_storages_are_counted_once():
    before = memory.live_bytes()
    whole = torch.zeros(1000)
    views = [whole[:10], whole.view(10, 100), whole.detach()]
    assert memory.live_bytes() - before == 4000
    assert len(views) == 3


def memory_event(ts, size, address, total=0, tid=1):
    args = {"Bytes": size, "Addr": address, "Total Allocated": total}
    return {"name": "[memory]", "ph": "i", "ts": ts, "tid": tid, "args": args}


def test_what_a_collective_takes_is_not_counted():
    events = [
        {"name": "span", "ph": "X", "ts": 10, "dur": 80, "tid": 1},
        {"name": "c10d::_allgather_base_", "ph": "X", "ts": 30, "dur": 10, "tid": 1},
        memory_event(1, 900, 7, total=900),
        memory_event(2, -900, 7, total=0),
        memory_event(3, 100, 8, total=100),
        memory_event(20, 50, 9),
        memory_event(35, 400, 10),  # the collective's, and given back after it
        memory_event(36, 700, 11, tid=2),  # a thread of its own
        memory_event(60, -400, 10),
        memory_event(70, -50, 9),
        memory_event(95, 900, 12),  # after the span
    ]
    assert memory.peak_of(reversed(events), "span") == (100, 150)


def test_a_row_has_both_theories():
    case = Case("zero2", 4, 2, {})
    row = memory.table([(case, Measured(held=5.0, peak=6.3, parameters=10 * 2**20))]).splitlines()[-1]
    assert row == (
        "| zero2 | 4 | 5.00 | 2 + 12/W = 5 | 6.30 | 2 + 16/W = 6 | 1.05 | 3 | 2 + 14/W = 5.5 | 1.15 |"
    )


def test_working_sets_are_as_large_a_part_of_the_model_as_of_7b(tmp_path):
    small = memory.preset_of("zero3", {"reduce_bucket_size": 5}, 67_384_156, tmp_path)  # a hundredth of it
    zero = read_preset(small)["zero_optimization"]
    assert (zero["stage3_max_live_parameters"], zero["sub_group_size"]) == (9_999_999, 999_999)
    assert zero["reduce_bucket_size"] == 5
    plain = read_preset(memory.preset_of("zero2", {}, 67_384_156, tmp_path))["zero_optimization"]
    assert "sub_group_size" not in plain
