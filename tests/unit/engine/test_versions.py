"""Versions of DeepSpeed that train on wrong gradients are refused where they do, and nowhere else."""

import pytest

from tokenization.errors import UserError
from trainer.engine.versions import check_version


def preset(stage, offload=False):
    section = {"offload_optimizer": {"device": "cpu"}} if offload else {}
    return {"zero_optimization": {"stage": stage, **section}}


BF16_STAGE_1 = (preset(1), "bf16", 2)
OFFLOAD = (preset(2, offload=True), "fp32", 2)
BF16_STAGE_0 = (preset(0), "bf16", 1)


@pytest.mark.parametrize(
    ("configuration", "installed", "told"),
    [
        *((BF16_STAGE_1, f"0.18.{patch}", "leaves the last micro batch out") for patch in range(6, 11)),
        (BF16_STAGE_1, "0.18.7+cu130", "leaves the last micro batch out"),
        (OFFLOAD, "0.18.10", "the last micro batch alone"),
        ((preset(1, offload=True), "bf16", 4), "0.17.0", "the last micro batch alone"),
        (BF16_STAGE_0, "0.18.5", "65,536"),
    ],
)
def test_a_version_that_is_wrong_here_is_refused_with_the_fix(configuration, installed, told):
    with pytest.raises(UserError, match=told) as caught:
        check_version(*configuration, installed=installed)
    assert f"DeepSpeed {installed} trains on wrong gradients here" in str(caught.value)
    assert "pip install -U deepspeed" in str(caught.value)


@pytest.mark.parametrize(
    ("configuration", "installed"),
    [
        (BF16_STAGE_1, "0.18.5"),
        (BF16_STAGE_1, "0.18.11"),
        ((preset(1), "bf16", 1), "0.18.7"),  # one micro batch
        ((preset(1), "fp32", 2), "0.18.7"),
        ((preset(2), "bf16", 2), "0.18.7"),
        (OFFLOAD, "0.19.0"),
        ((preset(3, offload=True), "bf16", 2), "0.18.10"),
        ((preset(2, offload=True), "bf16", 1), "0.18.10"),
        (BF16_STAGE_0, "0.18.6"),
        (BF16_STAGE_1, None),  # the one that the tests run with
    ],
)
def test_others_are_not(configuration, installed):
    check_version(*configuration, installed=installed)
