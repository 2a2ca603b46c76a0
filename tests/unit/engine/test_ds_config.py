"""A batch is cut evenly or not at all; a preset says how memory is split and nothing else."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import runs
from tokenization.errors import UserError, UserErrors
from trainer.engine import ds_config
from trainer.engine import layout as layout_
from trainer.engine.layout import Layout
from trainer.recipe.schema import Recipe

MODEL = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
"""LLaMA-2 7B's."""


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json", **changes))


@given(
    batch=st.integers(1, 4096),
    world_size=st.integers(1, 256),
    micro=st.just("auto") | st.integers(1, 64),
    fits=st.integers(0, 100),
    parts=st.sampled_from([1, 1, 2, 3, 8]),
)
def test_the_parts_make_the_whole(batch, world_size, micro, fits, parts):
    asked = recipe(global_batch_size=batch, micro_batch_size=micro, sequence_parallel_size=parts)
    groups = world_size // parts
    try:
        found = layout_.layout(asked, world_size, fits)
    except UserError:
        assert world_size % parts or batch % groups or (micro != "auto" and (batch // groups) % micro)
        return
    assert found.data_parallel_size == groups
    assert found.micro_batch_size * found.gradient_accumulation_steps * groups == batch
    places = [found.place(rank) for rank in range(world_size)]
    assert places == sorted((group, part) for group in range(groups) for part in range(parts))
    if micro == "auto":
        assert found.micro_batch_size <= max(fits, 1)
    else:
        assert found.micro_batch_size == micro


@pytest.mark.parametrize(
    ("batch", "world_size", "fits", "expected"),
    [
        (1024, 64, 5, (4, 4)),  # 16 rows per rank; 5 fit, 4 is the largest divisor
        (1024, 64, 100, (16, 1)),
        (8, 8, 0, (1, 1)),  # one sample must do, whatever the estimate says
        (30, 2, 7, (5, 3)),  # 15 rows: 5 divides, 7 does not
    ],
)
def test_auto_by_hand(batch, world_size, fits, expected):
    found = layout_.layout(recipe(global_batch_size=batch), world_size, fits)
    assert (found.micro_batch_size, found.gradient_accumulation_steps) == expected


@pytest.mark.parametrize(
    ("parts", "world_size", "batch", "line"),
    [
        (3, 8, 8, "sequence_parallel_size: 3 does not divide the 8 ranks; use one of [1, 2, 4, 8], or a mul"),
        (2, 12, 8, "global_batch_size: 8 does not divide evenly among 6 groups of 2 ranks; use 6 or 12"),
    ],
)
def test_ranks_that_cannot_share_samples_evenly(parts, world_size, batch, line):
    with pytest.raises(UserError) as caught:
        layout_.layout(recipe(sequence_parallel_size=parts, global_batch_size=batch), world_size, 4)
    assert line in str(caught.value)


def longer(seq_len, **changes):
    """A recipe of samples of 32, with one of `seq_len` in its second phase."""
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json", phases=2, **changes)
    tree["phases"][1]["seq_len"] = seq_len
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("seq_len", "micro", "fits", "expected"),
    [
        (64, 4, 9, (2, 8)),  # 32 samples of 64 for two ranks, and as many tokens at a time as 4 samples of 32
        (64, 1, 9, (1, 16)),  # a sample at least
        (256, 4, 9, (1, 4)),
        (8, 4, 9, (16, 8)),
        (64, "auto", 3, (2, 8)),  # the estimate is for samples of the phase
    ],
)
def test_longer_samples_keep_the_tokens_of_a_step_and_of_a_forward_pass(seq_len, micro, fits, expected):
    asked = longer(seq_len, global_batch_size=64, micro_batch_size=micro)
    found = layout_.layout(asked, 2, fits, phase=1)
    assert (found.micro_batch_size, found.gradient_accumulation_steps) == expected
    assert 2 * expected[0] * expected[1] * seq_len == asked.tokens_per_step


def test_longer_samples_of_which_ranks_cannot_have_as_many():
    with pytest.raises(UserError) as caught:
        layout_.layout(longer(64, global_batch_size=12), 4, 9, phase=1)
    line = "12 makes 6 samples of 64 tokens, which does not divide evenly among 4 ranks; use 8 or 16"
    assert line in str(caught.value)


def test_every_field_of_the_recipe_is_refused_in_a_preset(tmp_path):
    preset = tmp_path / "mine.json"
    preset.write_text(
        json.dumps({"zero_optimization": {"stage": 1}, **dict.fromkeys(ds_config.OWNED_BY_RECIPE, 1)})
    )
    with pytest.raises(UserErrors) as caught:
        ds_config.read_preset(preset)
    assert len(caught.value.problems) == len(ds_config.OWNED_BY_RECIPE)
    for field, instead in ds_config.OWNED_BY_RECIPE.items():
        line = f"{preset}: {field}: is set by the recipe, not by the ds_config; set {instead} in the recipe"
        assert line in str(caught.value)


def test_what_does_not_say_how_memory_is_split_is_refused_in_a_preset(tmp_path):
    preset = tmp_path / "mine.json"
    preset.write_text('{"zero_optimization": {"stage": 1}, "aio": {}, "curriculum_learning": {}}')
    with pytest.raises(UserError, match=r"mine\.json: curriculum_learning: is not a memory-sharding setting"):
        ds_config.read_preset(preset)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"zero": 1}'])
def test_a_file_that_is_no_preset(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json"):
        ds_config.read_preset(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("stage", "bucket"),
    [(1, 4096 * 4096), (2, 4096 * 11008), (3, 4096 * 4096)],  # ZeRO-2 keeps gradients that are larger
)
def test_bucket_sizes_follow_the_model_s_matrices_unless_given(stage, bucket):
    layout = Layout(2, 4, 1)
    preset = {"zero_optimization": {"stage": stage}}
    zero = ds_config.complete(preset, recipe(), layout, MODEL)["zero_optimization"]
    assert zero["reduce_bucket_size"] == bucket
    assert zero.get("stage3_param_persistence_threshold") == (40960 if stage == 3 else None)
    small = {"hidden_size": 64, "intermediate_size": 128}
    assert ds_config.with_sizes(preset, small)["reduce_bucket_size"] == 2**20
    given_ = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 123}}
    assert (
        ds_config.complete(given_, recipe(), layout, MODEL)["zero_optimization"]["reduce_bucket_size"] == 123
    )
    assert given_ == {"zero_optimization": {"stage": 2, "reduce_bucket_size": 123}}  # left as it was


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 3}, 100_000_000),  # a copy of 0.4 GB in place of one of all gradients
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, 100_000_000),
        ({"stage": 3, "sub_group_size": 7}, 7),
        ({"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/local"}}, None),
        ({"stage": 2}, None),
    ],
)
def test_zero_3_steps_a_part_of_its_weights_at_a_time(zero, expected):
    completed = ds_config.complete({"zero_optimization": zero}, recipe(), Layout(2, 4, 1), MODEL)
    assert completed["zero_optimization"].get("sub_group_size") == expected


def test_sixteen_bits_without_sharded_master_weights_are_refused():
    half = recipe(model={"tokenizer": "t", "dtype": "bf16", "init": {"hidden_size": 8}})
    with pytest.raises(UserError, match=r"model\.dtype: 'bf16' .*zero1\.json"):
        ds_config.complete({"zero_optimization": {"stage": 0}}, half, Layout(1, 1, 1), MODEL)


@pytest.mark.parametrize("section", [None, {"device": None}, {"device": "none"}, {}])
def test_null_is_no_offload_as_deepspeed_has_it(section):
    preset = {"zero_optimization": {"stage": 3, "offload_optimizer": section, "offload_param": section}}
    assert not ds_config.offloads_optimizer(preset)
    assert not ds_config.offloads_parameters(preset)
    assert ds_config.offloads_optimizer({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})


CPU = {"device": "cpu"}
NVME = {"device": "nvme", "nvme_path": "/fast"}
AVERAGED = {
    **runs.tree(Path("data"), Path("run"), "mine.json")["model"],
    "average": {"kind": "ema", "half_life": 1000},
}


@pytest.mark.parametrize(
    ("zero", "changes", "told"),
    [
        (
            {"offload_optimizer": {**CPU, "ratio": 0.3}},
            {},
            "mine.json: zero_optimization.offload_optimizer.ratio: keeps states in a second optimizer",
        ),
        (
            {"offload_optimizer": {**CPU, "super_offload": True}},
            {},
            "zero_optimization.offload_optimizer.super_offload: keeps states in a second",
        ),
        ({"zenflow": {"topk_ratio": 0.1}}, {}, "zero_optimization.zenflow: keeps states in a second"),
        (
            {"offload_optimizer": {"device": "nvme"}},
            {},
            "zero_optimization.offload_optimizer.nvme_path: is missing",
        ),
        (
            {"stage": 2, "offload_optimizer": NVME},
            {},
            "zero_optimization.offload_optimizer.device: 'nvme' needs ZeRO stage 3",
        ),
        (
            {"offload_optimizer": NVME},
            {"checkpoint": {"every_tokens": 256, "asynchronous": True}},
            "checkpoint.asynchronous: True would copy the states to host memory, and mine.json keeps",
        ),
        (
            {"offload_param": NVME},
            {"model": AVERAGED},
            "model.average: cannot be kept where mine.json keeps states on NVMe; offload to cpu there, or",
        ),
        (
            {"offload_param": NVME, "stage3_prefetch_bucket_size": 1000},
            {},
            "zero_optimization.stage3_prefetch_bucket_size: 1000 makes DeepSpeed",
        ),
    ],
)
def test_what_cannot_be_saved_or_trained_is_refused_before_training(zero, changes, told):
    preset = {"zero_optimization": {"stage": 3, **zero}}
    with pytest.raises(UserError) as caught:
        ds_config.check_saved(preset, recipe(deepspeed="mine.json", **changes))
    (line,) = str(caught.value).splitlines()
    assert told in line


def test_frozen_weights_on_nvme_are_refused():
    tree = runs.tree(Path("data"), Path("run"), "mine.json")
    tree["phases"][0]["train"] = "new_rows"
    told = r"phases\.0\.train: 'new_rows' leaves weights frozen.*to cpu in mine\.json"
    with pytest.raises(UserErrors, match=told):
        ds_config.check_saved(
            {"zero_optimization": {"stage": 3, "offload_param": NVME}}, Recipe.model_validate(tree)
        )


def test_two_runs_on_one_node_swap_to_different_places():
    preset = {"zero_optimization": {"stage": 3, "offload_optimizer": NVME, "offload_param": CPU}}
    folders = [
        ds_config.swap_folders(ds_config.complete(preset, recipe(run_dir=run), Layout(2, 4, 1), MODEL))
        for run in ("one", "two", "one")
    ]
    assert folders[0] == folders[2] != folders[1]
    assert {folder.parent for shown in folders for folder in shown} == {Path("/fast")}


def test_a_buffer_for_swapped_weights_holds_a_ranks_share_of_the_largest():
    preset = {"zero_optimization": {"stage": 3, "offload_param": NVME}}
    zero = ds_config.complete(preset, recipe(), Layout(2, 4, 1), MODEL)["zero_optimization"]
    assert zero["offload_param"]["buffer_size"] == 32000 * 4096 // 2
    assert (zero["stage3_prefetch_bucket_size"], zero["stage3_max_reuse_distance"]) == (0, 0)


@pytest.mark.parametrize(
    ("zero", "told"),
    [
        (None, "zero_optimization: is not a mapping"),
        ([], r"zero_optimization: \[\] is not a mapping"),
        ({"stage": 4}, "zero_optimization.stage: 4 is not a ZeRO stage; use 0, 1, 2 or 3"),
        ({"stage": None}, "zero_optimization.stage: null is not a ZeRO stage"),
        ({"stage": "2"}, 'zero_optimization.stage: "2" is not a ZeRO stage'),
        ({"stage": True}, "zero_optimization.stage: true is not a ZeRO stage"),
        ({"stage": 2, "overlap_com": True}, "overlap_com: true: is not a field .*mean 'overlap_comm'"),
        (
            {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memry": True}},
            "zero_optimization.offload_optimizer.pin_memry: true: is not a field .*mean 'pin_memory'",
        ),
        ({"stage": 2, "offload_optimizer": "cpu"}, 'zero_optimization.offload_optimizer: "cpu": '),
        ({"stage": 2, "reduce_bucket_size": None}, "zero_optimization.reduce_bucket_size: null: "),
    ],
)
def test_what_deepspeed_would_not_take_is_one_line_each(tmp_path, zero, told):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    with pytest.raises(UserErrors, match=f"^{file}: .*{told}") as caught:
        ds_config.check_known(ds_config.read_preset(file), file)
    assert all("\n" not in str(problem) for problem in caught.value.problems)
