"""A run that steers its own replay: the same decisions and weights after any kill and at other stages."""

import pytest
import torch

from tests.helpers import runs
from trainer.checkpoint.rank_files import Reader
from trainer.mixer.decisions import read_decisions

pytestmark = pytest.mark.slow

STEP = 8 * 32
"""Tokens in a step."""


def tree(data, run, stage, **budget):
    """Twelve steps with a decision after every third, each step saved."""
    found = runs.recipe(data, run, stage, name="budget", micro_batch_size=2)
    found["phases"][0]["mixture"] = {
        "forgetting_budget": 0.02,
        "replay_ratio": "25%",
        "decide_every": 3 * STEP,
        "measured_samples": 16,
        **budget,
    }
    found["model"]["average"] = {"kind": "ema", "half_life": 4 * STEP}
    found["phases"][0]["schedule"]["warmup"] = "10%"
    found["validation"] |= {"every_tokens": 100 * STEP, "audit": str(data / "zh-val")}
    found["checkpoint"] = {"every_tokens": STEP, "keep_last": 20}
    found["logging"] = {"tensorboard": False}
    return found


def unheld(data, folder, action):
    """From an English base to Chinese with hardly any replay and a high LR: too much is forgotten."""
    ratios = dict.fromkeys(("replay_min", "replay_ratio", "replay_max"), "8/1024")
    found = tree(data, folder / action, 2, **ratios, decide_every=STEP, on_failure=action)
    found["model"].pop("init")
    found["model"]["base"] = str(folder / "base" / "checkpoints" / "step-00000006")
    found["phases"][0] |= {"schedule": {"kind": "constant", "max_lr": 3e-2}, "tokens": 8 * STEP}
    return found


def measured(data, run, average):
    """Four steps in 16 bits at ZeRO-3, validated after every second one."""
    found = runs.recipe(data, run, 3, name="measured", micro_batch_size=2, logging={"tensorboard": False})
    found["model"] |= {"dtype": "bf16", "average": average}
    found["phases"][0]["tokens"] = 4 * STEP
    found["validation"]["every_tokens"] = 2 * STEP
    return found


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    base = tree(data, folder / "base", 2)
    base["phases"][0] |= {"mixture": {"en": 1}, "tokens": 6 * STEP}
    jobs = [
        runs.Job(tree(data, folder / "whole", 2)),
        *(
            runs.Job(tree(data, folder / f"after-{step}", 2), after=(folder / "whole", step))
            for step in (2, 3, 4)
        ),
        runs.Job(tree(data, folder / "stage-3", 3), after=(folder / "whole", 2)),
        runs.Job(base),
        *(runs.Job(unheld(data, folder, action)) for action in ("lower_lr", "pull_to_base")),
        runs.Job(measured(data, folder / "plain", None)),
        runs.Job(measured(data, folder / "averaged", {"kind": "window", "half_life": 3 * STEP})),
    ]
    assert {job["status"] for job in runs.launch_several(folder, jobs, 2)} == {0}
    return folder


def weights(run, step):
    """The weights of a checkpoint, put together."""
    reader = Reader(sorted((run / "checkpoints" / f"step-{step:08d}").glob("rank-*.safetensors")))
    return {weight.name: weight.make() for weight in reader.weights()}


def decisions(folder, run):
    return (folder / run / "decisions.jsonl").read_bytes()


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_killed_around_a_decision_goes_on_to_the_bit(folder, step):
    assert decisions(folder, f"after-{step}") == decisions(folder, "whole")
    # Weights, moments and averages: the files at the end are the same.
    files = [runs.manifest(folder / run, 12)["files"] for run in (f"after-{step}", "whole")]
    assert files[0] == files[1]
    assert runs.trace(folder / f"after-{step}") == runs.trace(folder / "whole")[step + 1 :]


def test_another_stage_makes_the_same_decisions(folder):
    assert decisions(folder, "stage-3") == decisions(folder, "whole")


def test_a_decision_applies_one_decision_later_and_to_the_sample(folder):
    records = read_decisions(folder / "whole" / "decisions.jsonl")
    assert [(one["sample"], one["applies_from"]) for one in records] == [
        (24, 48),
        (48, 72),
        (72, 96),
        (96, 120),
    ]
    assert records == runs.manifest(folder / "whole", 12)["state"]["decisions"]
    ratios = [256, 256, records[0]["replay"], records[1]["replay"]]
    assert len(set(ratios)) == 3
    taken = [record["tokens/source/en"] // 32 for record in runs.trace(folder / "whole")[3::3]]
    for number, (before, after) in enumerate(zip([0, *taken], taken, strict=False)):
        assert abs((after - before) - 24 * ratios[number] / 1024) < 1


def test_averages_are_measured_beside_the_weights_and_the_audit_set_too(folder):
    last = runs.read_metrics(folder / "whole")[-1]
    names = ("eval/audit/forgetting", "average/eval/audit/forgetting", "average/eval/upstream/bits_per_byte")
    assert set(names) <= set(last)
    assert last["average/eval/upstream/bits_per_byte"] != last["eval/upstream/bits_per_byte"]


def test_measuring_averages_changes_nothing_that_is_trained(folder):
    plain, averaged = folder / "plain", folder / "averaged"
    assert runs.trace(averaged) == runs.trace(plain)
    assert runs.manifest(averaged, 4)["weights"] == runs.manifest(plain, 4)["weights"]


def test_a_budget_that_cannot_be_held_halves_the_lr_or_pulls_to_the_base(folder):
    lowered, pulled = (
        read_decisions(folder / action / "decisions.jsonl") for action in ("lower_lr", "pull_to_base")
    )
    at = next(number for number, one in enumerate(lowered) if not one["held"])
    assert lowered[at]["action"] == "lower_lr"
    lrs = [record["lr"] for record in runs.trace(folder / "lower_lr") if "lr" in record]
    assert lrs[at] == 3e-2
    assert lrs[at + 1] == 1.5e-2
    assert pulled[at]["action"] == "pull_to_base"
    assert (
        pulled[:at]
        == [{**one, "previous": two["previous"]} for one, two in zip(lowered, pulled, strict=True)][:at]
    )
    step = pulled[at]["sample"] // 8
    runs_at = (("base", 6), ("lower_lr", step), ("pull_to_base", step))
    base, raw, moved = (weights(folder / run, number) for run, number in runs_at)
    for name, weight in moved.items():
        assert torch.equal(weight, torch.lerp(raw[name], base[name], 0.25))
