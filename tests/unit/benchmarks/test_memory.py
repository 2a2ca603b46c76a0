"""benchmarks/memory.py: the theory's numbers, and what counts the bytes."""

from threading import Thread

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import memory
from benchmarks.memory import THEORY, Case, Measured
from benchmarks.traced import LiveBytes
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


def test_bytes_that_a_thread_of_its_own_frees_are_counted_as_freed():
    """The profiler counts only what the threads that it watches free, and gloo's own threads free tensors."""
    elements = 250_000  # a million bytes
    with LiveBytes() as live:
        larger = torch.zeros(8 * elements)
        del larger
        kept = [torch.zeros(2 * elements)]
        live.peak = live.now
        first = torch.zeros(3 * elements)
        view = first[1:]
        del first
        assert live.now == 5_000_000
        del view
        freeing = Thread(target=kept.clear)
        freeing.start()
        freeing.join()
        second = torch.zeros(elements)
    assert (live.now, live.peak) == (1_000_000, 5_000_000)
    del second


def test_distinct_storages_are_counted_once():
    before = memory.reachable_bytes()
    whole = torch.zeros(1000)
    views = [whole[:10], whole.view(10, 100), whole.detach()]
    with FakeTensorMode():
        fake = torch.zeros(1000)
    assert memory.reachable_bytes() - before == 4000
    assert len(views) == 3
    assert len(fake) == 1000


def test_a_row_has_all_three_theories():
    case = Case("zero2", 4, 2, {})
    found = Measured(held=5.0, peak=6.3, planned=6.5, parameters=10 * 2**20)
    row = memory.table([(case, found)]).splitlines()[-1]
    assert row == (
        "| zero2 | 4 | 5.00 | 2 + 12/W = 5 | 6.30 | 2 + 16/W = 6 | 5 | 6.50 | 0.97 | 1.05 "
        "| 2 + 14/W = 5.5 | 1.15 |"
    )


def test_working_sets_are_as_large_a_part_of_the_model_as_of_7b(tmp_path):
    small = memory.preset_of("zero3", {"reduce_bucket_size": 5}, 67_384_156, tmp_path)  # a hundredth of it
    zero = read_preset(small)["zero_optimization"]
    assert (zero["stage3_max_live_parameters"], zero["sub_group_size"]) == (9_999_999, 999_999)
    assert zero["reduce_bucket_size"] == 5
    plain = read_preset(memory.preset_of("zero2", {}, 67_384_156, tmp_path))["zero_optimization"]
    assert "sub_group_size" not in plain
