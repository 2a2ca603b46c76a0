"""A checkpoint of any ZeRO stage goes on at any stage and world size, with no command in between."""

import pytest

from tests.helpers import runs

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
RANKS = (1, 2, 4)
STEP = 8 * 32
"""Tokens in a step."""

AWKWARD = {
    "hidden_size": 42,
    "intermediate_size": 61,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
"""Sizes that neither 2 nor 4 ranks divide, so that every stage has to pad."""


def tree(data, run, stage):
    """Four steps of a run of twelve, saved at the second and the fourth."""
    tree = runs.recipe(data, run, stage, name="any", stop_after=4 * STEP, micro_batch_size=2)
    tree["model"]["init"] = AWKWARD
    tree["validation"] = {"every_tokens": 100 * STEP}
    tree["checkpoint"] = {"every_tokens": 2 * STEP, "keep_last": 2}
    tree["logging"] = {"tensorboard": False}
    return tree


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Runs `saved-STAGE` of 2 ranks, and `STAGE-NOW-RANKS`, which went on from their second step."""
    folder = tmp_path_factory.mktemp("topology")
    saved = [runs.Job(tree(data, folder / f"saved-{stage}", stage)) for stage in STAGES]
    for ranks in sorted(RANKS, key=lambda ranks: ranks != 2):
        jobs = [
            runs.Job(
                tree(data, folder / f"{before}-{now}-{ranks}", now),
                after=(folder / f"saved-{before}", 2),
            )
            for before in STAGES
            for now in STAGES
        ]
        found = runs.launch_several(folder, [*saved, *jobs] if ranks == 2 else jobs, ranks)
        assert {job["status"] for job in found} == {0}
        assert all("decided  restore" in job["said"] for job in found[-len(jobs) :])
    return folder


def test_all_stages_train_the_same(folder):
    expected = runs.trace(folder / "saved-0")
    assert [record["step"] for record in expected] == [1, 2, 3, 4]
    assert len({record["loss/train"] for record in expected}) == 4
    for stage in STAGES[1:]:
        for left, right in zip(expected, runs.trace(folder / f"saved-{stage}"), strict=True):
            assert right == pytest.approx(left, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("before", STAGES)
@pytest.mark.parametrize("now", STAGES)
@pytest.mark.parametrize("ranks", RANKS)
def test_it_goes_on_anywhere(folder, before, now, ranks):
    saved, resumed = folder / f"saved-{before}", folder / f"{before}-{now}-{ranks}"
    expected, found = runs.trace(saved)[2:], runs.trace(resumed)
    assert [record["step"] for record in found] == [3, 4]
    for left, right in zip(expected, found, strict=True):
        assert right["loss/train"] == pytest.approx(left["loss/train"], abs=1e-6, rel=0)
        assert right["lr"] == left["lr"]
        assert right["tokens/source/zh"] == left["tokens/source/zh"]
    if (before, 2) == (now, ranks):
        assert found == expected
        # To the bit: the files at the end hold the same weights and moments.
        assert runs.manifest(resumed, 4)["files"] == runs.manifest(saved, 4)["files"]
    else:
        assert runs.manifest(resumed, 4)["world_size"] == ranks
