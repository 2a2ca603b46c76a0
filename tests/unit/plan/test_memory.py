"""The memory model: hand counts, orders that must hold, and traces of the trainer's own model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.memory import preset_of
from benchmarks.plan import traced
from tests.helpers.model_tiny import recipe
from trainer.engine.ds_config import read_preset
from trainer.model.cross_entropy import CHUNK_LOGITS
from trainer.plan.memory import FUSED_LOGITS, MemorySettings, Shape, bare_peak, estimate, layer_bytes
from trainer.plan.presets import memory_settings
from trainer.plan.shapes import SHAPES

SHAPE_60M = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "vocab_size": 2048,
}
"""The model of `benchmarks.memory`."""

SEVEN_B = Shape.of(SHAPES["llama2-7b"])
GIB = 2**30


def settings(**changes):
    return MemorySettings(**{"stage": 2, "world_size": 64, "seq_len": 4096, **changes})


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(1, 2, 4, 12 / 64), (2, 2, 4 / 64, 12 / 64), (3, 2 / 64, 4 / 64, 12 / 64)],
)
def test_the_states_are_those_of_the_zero_paper_with_fp32_gradients(stage, weights, gradients, optimizer):
    memory, count = estimate(SEVEN_B, settings(stage=stage)), 6_738_415_616
    assert SEVEN_B.parameters == count
    found = (memory.weights, memory.gradients, memory.optimizer)
    assert found == pytest.approx([part * count for part in (weights, gradients, optimizer)], rel=1e-6)


def test_a_layer_of_llama_keeps_what_a_hand_count_says():
    # Two norms: 4 + 2 + 2 bytes of 4,096 each. Queries, keys, values, output: 2 bytes of 4,096 each.
    # The softmax: 4 bytes of 32 heads. Gate, its activation, up, product: 2 bytes of 11,008 each.
    by_hand = 2 * 8 * 4096 + 4 * 2 * 4096 + 4 * 32 + 4 * 2 * 11008
    assert layer_bytes(SEVEN_B, settings()) == by_hand


def test_the_loss_is_cut_into_chunks_as_the_model_cuts_it():
    assert FUSED_LOGITS == CHUNK_LOGITS


HELD = {
    "zero0": (17.16, 17.16, 17.16),
    "zero1": (21.82, 13.93, 9.93),
    "zero2": (18.31, 10.40, 6.35),
    "zero3": (18.42, 9.77, 5.27),
    "zero2-offload": (24.51, 13.53, 8.01),
    "zero3-offload": (22.53, 11.82, 6.28),
}
"""Bytes per parameter at the peak of a step on 1, 2 and 4 ranks, by `python -m benchmarks.memory`."""


@pytest.mark.parametrize("preset", HELD)
def test_the_estimate_is_within_a_tenth_of_what_ranks_held(preset, tmp_path):
    fields = {**SHAPE_60M, "model_type": "llama"}
    shape = Shape.of(fields)
    read = read_preset(preset_of(preset, {}, shape.parameters, tmp_path))
    made = recipe(f"model.dtype={'fp32' if preset == 'zero0' else 'bf16'}", "seq_len=8")
    for ranks, held in zip((1, 2, 4), HELD[preset], strict=True):
        memory = estimate(shape, memory_settings(made, read, fields, ranks, cuda=False))
        assert (memory.peak(1) + memory.host) / shape.parameters == pytest.approx(held, rel=0.1), ranks


def test_zero_2_waits_with_its_part_of_the_gradients_of_matrices_that_are_larger_than_a_bucket():
    mlp, embeddings = 32 * 3 * 4096 * 11008, 2 * 32_000 * 4096  # norms are left out
    for bucket, waiting in ((4096**2, mlp + embeddings), (4096 * 11008, embeddings), (32_000 * 4096, 0)):
        ending = estimate(SEVEN_B, settings(bucket=bucket, world_size=8)).ending
        assert ending == pytest.approx(2 * waiting / 8, rel=0.01), bucket


@given(
    stage=st.integers(0, 3),
    ranks=st.sampled_from([1, 2, 8, 64]),
    dtype=st.sampled_from(["fp32", "bf16"]),
    recompute=st.sampled_from(["none", "full", "offload"]),
    available=st.integers(0, 2**39),
)
def test_the_largest_micro_batch_fits_and_the_next_one_does_not(stage, ranks, dtype, recompute, available):
    memory = estimate(SEVEN_B, settings(stage=stage, world_size=ranks, dtype=dtype, recompute=recompute))
    most = memory.largest_micro_batch(available)
    assert most == 0 or memory.peak(most) <= available
    assert memory.peak(most + 1) > available


@given(micro=st.integers(1, 64), stage=st.integers(1, 3))
def test_more_saving_takes_less_memory(micro, stage):
    modes = [("none", 1), ("every_n", 2), ("full", 1), ("offload", 1)]
    peaks = [
        estimate(SEVEN_B, settings(stage=stage, recompute=mode, every_n=n)).peak(micro) for mode, n in modes
    ]
    assert peaks == sorted(peaks, reverse=True)
    device = [estimate(SEVEN_B, settings(stage=stage, **offload)).peak(micro) for offload in (
        {}, {"offload_optimizer": True}, {"offload_optimizer": True, "offload_parameters": True}
    )]  # fmt: skip
    assert device == sorted(device, reverse=True)
    narrow = estimate(SEVEN_B, settings(stage=stage, state_width=2))
    assert narrow.optimizer == pytest.approx(8 * SEVEN_B.parameters / 64, rel=1e-6)


def test_the_extended_vocabulary_is_in_the_logits_the_gradients_and_the_weights():
    wide = Shape.of({**SHAPES["llama2-7b"], "vocab_size": 55_296})
    rows = 23_296 * 4096
    assert wide.parameters - SEVEN_B.parameters == 2 * rows
    more = estimate(wide, settings()).loss.embedding - estimate(SEVEN_B, settings()).loss.embedding
    assert more == 6 * rows


@pytest.mark.parametrize(
    ("name", "mode", "pieces"),
    [
        ("llama2-7b", "none", 32_000),
        ("llama2-7b", "every_n: 2", 55_296),
        ("llama2-7b", "full", 55_296),
        ("llama2-13b", "none", 55_296),
        ("llama2-70b", "full", 55_296),
    ],
)
def test_the_estimate_is_within_15_percent_of_a_trace_at_4096_tokens(name, mode, pieces):
    """All layers of the real shapes; docs/plan.md has every mode with both vocabularies."""
    (row,) = traced((name,), (mode,), (pieces,))
    assert abs(row.off) < 0.15, row


@pytest.mark.parametrize("name", ["llama2-70b", "mistral-7b", "pythia-410m"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("micro", [1, 4])
def test_the_estimate_is_within_15_percent_of_a_trace_of_four_layers(name, dtype, micro):
    """Four layers, with grouped heads, another architecture, fp32; all grows linearly with layers."""
    from benchmarks.traced import recipe_of, trace

    config = {**SHAPES[name], "num_hidden_layers": 4}
    recipe = recipe_of([f"model.dtype={dtype}", "seq_len=2048"])
    found = trace(config, recipe, micro)
    expected = bare_peak(
        Shape.of(config),
        settings(stage=0, world_size=1, seq_len=2048, dtype=dtype, device="cpu"),
        micro,
    )
    assert expected == pytest.approx(found.peak, rel=0.15)
    deeper = trace({**config, "num_hidden_layers": 6}, recipe, micro)
    per_layer = (deeper.kept - found.kept) / 2 / micro / 2048
    counted = layer_bytes(Shape.of(config), settings(seq_len=2048, dtype=dtype))
    assert counted == pytest.approx(per_layer, rel=0.15)
