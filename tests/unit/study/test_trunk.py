"""A run that others go on from: what is copied, what is shared, and what a kill leaves behind."""

import json
from pathlib import Path

import pytest

from tests.helpers import runs
from tests.helpers.studies import make_trunk
from tokenization.errors import UserError
from trainer.metrics.jsonl import read_attempts
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import Recipe
from trainer.storage.run_directory import RunDirectory
from trainer.study.trunk import Trunk, find_branching, go_on_from


def arm(path: Path) -> Recipe:
    return Recipe.model_validate(runs.tree(Path("data"), path, "ds_configs/zero2.json"))


def held(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file())


def test_the_newest_checkpoint_is_shared_and_the_record_is_the_arm_s_own(tmp_path):
    trunk, run = make_trunk(tmp_path / "trunk"), tmp_path / "arm"
    before = {name: (trunk / name).read_bytes() for name in held(trunk)}
    go_on_from(Trunk(trunk), arm(run))
    assert held(run) == [
        "checkpoints/step-00000008/COMMITTED",
        "checkpoints/step-00000008/rank-0.safetensors",
        "identity.json",
        "last_committed.json",
        "metrics.jsonl",
        "recipe.resolved.yaml",
    ]
    shared = "checkpoints/step-00000008/rank-0.safetensors"
    assert (run / shared).samefile(trunk / shared)
    assert not (run / "metrics.jsonl").samefile(trunk / "metrics.jsonl")
    own = load_recipe(RunDirectory(run).recipe)
    assert (own.name, own.directory, own.phases) == (arm(run).name, run, arm(run).phases)
    (attempt,) = read_attempts(run)
    assert [record["step"] for record in attempt.records] == list(range(9))
    assert attempt.run_id == ""
    assert {name: (trunk / name).read_bytes() for name in held(trunk)} == before


def test_an_earlier_checkpoint_ends_the_record_at_its_step(tmp_path):
    trunk, run = make_trunk(tmp_path / "trunk"), tmp_path / "arm"
    go_on_from(Trunk(trunk, 4), arm(run))
    assert json.loads((run / "last_committed.json").read_text()) == {"step": 4}
    assert [record["step"] for record in read_attempts(run)[0].records] == list(range(5))
    with pytest.raises(UserError, match="has no checkpoint to go on from"):
        go_on_from(Trunk(trunk, 6), arm(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_copy_that_was_killed_is_made_again_and_one_that_is_whole_is_left_alone(tmp_path):
    trunk, run = make_trunk(tmp_path / "trunk"), tmp_path / "arm"
    (tmp_path / "arm.partial" / "checkpoints").mkdir(parents=True)
    (tmp_path / "arm.partial" / "half").write_text("x")
    go_on_from(Trunk(trunk), arm(run))
    assert "half" not in held(run)
    assert not (tmp_path / "arm.partial").exists()
    (run / "metrics.jsonl").write_text("mine")
    go_on_from(Trunk(trunk), arm(run))
    assert (run / "metrics.jsonl").read_text() == "mine"


@pytest.mark.parametrize("word", ["runs/long", "@1e9", "runs/long@", "runs/long@x", "runs/long@1.5"])
def test_a_branching_that_is_written_wrongly_is_told(word):
    with pytest.raises(UserError, match=r"--from: .* is not RUN@TOKENS; write .*runs/long@10e9"):
        find_branching(word)
