"""The arms of each study: what differs is what the study asks about, and nothing else."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import runs
from tokenization.errors import UserError
from trainer.cli.main import build_parser
from trainer.recipe.load import dump_recipe, load_recipe, parse_recipe
from trainer.recipe.schema import Recipe
from trainer.scheduler.curves import Curve
from trainer.study import grids


def recipe(**changes) -> Recipe:
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json", phases=2)
    tree["phases"][-1]["schedule"]["warmup"] = "5%"
    tree["phases"][-1].update(changes)
    return parse_recipe(dump_recipe(Recipe.model_validate(tree)))


def arms(name: str, base: Recipe) -> dict[str, Recipe]:
    """The recipe of each arm, read as a user's command line is."""
    return {one.name: parse_recipe(dump_recipe(base), one.overrides) for one in grids.arm_specs(name, base)}


def shares(arm: Recipe, role: str) -> Fraction:
    (mixture,) = arm.phases[-1].mixture
    if mixture.replay_ratio is not None:
        return mixture.replay_ratio if role == "replay" else 1 - mixture.replay_ratio
    return sum(weight for name, weight in mixture.weights.items() if arm.sources[name].role == role)


@pytest.mark.parametrize("name", grids.STUDIES)
def test_only_the_last_phase_differs_and_only_in_what_is_asked(name):
    base = recipe()
    changed = {"replay": {"mixture"}, "same_data": {"mixture", "schedule"}}.get(name, {"schedule"})
    seen = []
    for arm in arms(name, base).values():
        assert arm.phases[:-1] == base.phases[:-1]
        last, before = arm.phases[-1].model_dump(), base.phases[-1].model_dump()
        assert {field for field in last if last[field] != before[field]} <= changed
        rest = {"phases", "allow"}
        assert arm.model_dump(exclude=rest) == base.model_dump(exclude=rest)
        assert arm.phases[-1] not in seen
        seen.append(arm.phases[-1])
    assert len(seen) >= 4


@pytest.mark.parametrize("name", grids.STUDIES)
def test_no_override_has_a_blank_at_which_a_batch_script_would_cut_it(name):
    for variant in grids.arm_specs(name, recipe()):
        assert all(len(word.split()) == 1 for word in variant.overrides)


@given(weights=st.lists(st.integers(1, 50), min_size=4, max_size=4))
def test_within_a_role_the_proportions_stay(weights):
    total = sum(weights)
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json")
    for name, role in (("web", "new"), ("books", "new"), ("wiki", "replay"), ("code", "replay")):
        tree["sources"][name] = {"path": f"data/{name}", "role": role}
    given_ = dict(zip(("web", "books", "wiki", "code"), weights, strict=True))
    tree["phases"][0]["mixture"] = {name: f"{weight}/{total}" for name, weight in given_.items()}
    found = arms("replay", Recipe.model_validate(tree))
    assert [shares(arm, "replay") for arm in found.values()] == [
        Fraction(share, 100) for share in (0, 1, 5, 10, 25, 50)
    ]
    for arm in found.values():
        held = arm.phases[0].mixture[0].weights
        assert sum(held.values()) == 1
        assert held["web"] * weights[1] == held["books"] * weights[0]
        if "wiki" in held:
            assert held["wiki"] * weights[3] == held["code"] * weights[2]


def test_a_ratio_stays_a_ratio():
    found = arms("replay", recipe(mixture={"replay_ratio": "0.3"}))
    assert [arm.phases[-1].mixture[0].replay_ratio for arm in found.values()][2] == Fraction(1, 20)


def test_learning_rates_by_hand():
    found = arms("max_lr", recipe(schedule={"kind": "wsd", "max_lr": 1e-2, "warmup": "25%"}))
    tokens = list(range(0, 3073, 256))
    curves = {name: Curve(arm.phases[-1].schedule, 3072)(tokens) for name, arm in found.items()}
    highest = {name: max(curve) for name, curve in curves.items()}
    assert highest == pytest.approx(
        {"constant": 1e-3, "max-lr-half": 5e-3, "max-lr-same": 1e-2, "max-lr-twice": 2e-2}
    )
    assert curves["constant"][0] == pytest.approx(1e-3)


def test_same_data_is_the_old_data_alone_and_is_allowed():
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json", allow=["no_replay"])
    for arm in arms("same_data", Recipe.model_validate(tree)).values():
        assert shares(arm, "replay") == 1
        assert set(arm.allow) == {"no_replay", "rewarm_on_same_data"}


def test_what_a_recipe_lacks_is_told():
    with pytest.raises(UserError, match="did you mean 'replay'"):
        grids.arm_specs("repaly", recipe())
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json")
    tree["sources"]["en"]["role"] = "new"
    with pytest.raises(UserError, match="sources: has no source of role replay"):
        grids.arm_specs("replay", Recipe.model_validate(tree))
    changing = [{"zh": "1"}, {"from": 512, "zh": "1/2", "en": "1/2"}]
    with pytest.raises(UserError, match=r"phases\.1\.mixture: changes within the phase"):
        grids.arm_specs("replay", recipe(mixture=changing))


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readme_names_every_study_and_a_command_that_is_one(page):
    text = (runs.ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\| `(\w+)` \|", text)[: len(grids.STUDIES)] == list(grids.STUDIES)
    (command,) = re.findall(r"(?m)^rewarm (study .*)$", text)
    asked = build_parser().parse_args(command.split())
    assert grids.arm_specs(asked.name, load_recipe(runs.ROOT / asked.recipe))
