"""The arms of each study: what differs is what the study asks about, and nothing else."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import runs
from tokenization.errors import UserError
from trainer.cli.main import build_parser
from trainer.recipe.load import dump_recipe, load_recipe, parse_recipe
from trainer.recipe.schema import Recipe
from trainer.scheduler.curves import Curve
from trainer.study import grids
from trainer.study.line import CONTINUED
from trainer.study.spec import NOTHING, Options, flow, read_vary


def recipe(**changes) -> Recipe:
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json", phases=2)
    tree["phases"][-1]["schedule"]["warmup"] = "5%"
    tree["phases"][-1].update(changes)
    return parse_recipe(dump_recipe(Recipe.model_validate(tree)))


def arms(name: str, base: Recipe, options: Options = NOTHING) -> dict[str, Recipe]:
    """The recipe of each arm, read as a user's command line is."""
    specs = grids.arm_specs(name, base, options)
    return {one.name: parse_recipe(dump_recipe(base), one.overrides) for one in specs}


def shares(arm: Recipe, role: str) -> Fraction:
    (mixture,) = arm.phases[-1].mixture
    if mixture.replay_ratio is not None:
        return mixture.replay_ratio if role == "replay" else 1 - mixture.replay_ratio
    return sum(weight for name, weight in mixture.weights.items() if arm.sources[name].role == role)


ONE_PHASE = ("replay", "max_lr", "warmup", "schedule", "same_data")
OPTIONS = {
    "grid": Options(
        vary=(("phases.1.schedule.max_lr", ("1e-3", "3e-3")), ("phases.1.tokens", ("512", "1024")))
    ),
    "branch": Options(branched=(1, 1536)),
}


@pytest.mark.parametrize("name", ONE_PHASE)
def test_only_the_last_phase_differs_and_only_in_what_is_asked(name):
    base = recipe()
    changed = {"replay": {"mixture"}, "same_data": {"mixture", "schedule"}}.get(name, {"schedule"})
    seen = []
    for arm_name, arm in arms(name, base).items():
        if arm_name == "scratch":
            continue
        assert arm.phases[:-1] == base.phases[:-1]
        last, before = arm.phases[-1].model_dump(), base.phases[-1].model_dump()
        assert {field for field in last if last[field] != before[field]} <= changed
        rest = {"phases", "allow"}
        assert arm.model_dump(exclude=rest) == base.model_dump(exclude=rest)
        assert arm.phases[-1] not in seen
        seen.append(arm.phases[-1])
    assert len(seen) >= 4
    assert {one.phase for one in grids.arm_specs(name, base)} - {1} == ({0} if name == "max_lr" else set())


@pytest.mark.parametrize("name", [name for name in grids.STUDIES if name != "new_rows"])
def test_no_override_has_a_blank_at_which_a_batch_script_would_cut_it(name):
    for variant in grids.arm_specs(name, recipe(), OPTIONS.get(name, NOTHING)):
        assert all(len(word.split()) == 1 for word in variant.overrides)


def test_the_arm_from_scratch_is_the_last_phase_alone():
    base = recipe()
    scratch = arms("max_lr", base)["scratch"]
    same = arms("max_lr", base)["max-lr-same"]
    assert scratch.phases == same.phases[1:]
    based = Recipe.model_validate({**base.model_dump(), "model": {"tokenizer": "t", "base": "b"}})
    (spec,) = [one for one in grids.arm_specs("max_lr", based) if one.name == "scratch"]
    assert (spec.phase, spec.model) == (0, "random_weights")
    alone = parse_recipe(dump_recipe(base), ["phases=" + flow([base.phases[1].model_dump(mode="json")])])
    assert "scratch" not in arms("max_lr", alone)


def test_arms_that_start_from_other_models_share_no_phase():
    based = Recipe.model_validate({**recipe().model_dump(), "model": {"tokenizer": "t", "base": "b"}})
    found = grids.arm_specs("new_rows", based)
    assert [one.model for one in found] == ["subpiece_mean", "mean", "random", "unextended"]
    assert {one.phase for one in found} == {0}
    with pytest.raises(UserError, match=r"model\.base: is missing"):
        grids.arm_specs("new_rows", recipe())


STEP = 8 * 32


def lr_of(phases, tokens):
    """The learning rate after so many tokens of the last two phases, each step's own."""
    first, second = phases[-2:]
    if tokens < first.tokens:
        return Curve(first.schedule, first.tokens)(tokens)
    return Curve(second.schedule, second.tokens)(tokens - first.tokens)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "infinite", "inverse_sqrt", "linear"])
def test_an_exact_resume_has_the_whole_curve_and_a_restart_has_its_start_twice(kind):
    tokens = 64 * STEP
    whole = {"kind": kind, "max_lr": 1e-2, "warmup": "5%"}
    base = recipe(tokens=tokens, schedule=whole)
    curve = Curve(base.phases[-1].schedule, tokens)
    found = arms("restore", base)
    assert list(found) == ["exact", "optimizer-reset", "schedule-restarted", "constant"]
    assert [arm.phases[-1].keep_optimizer for arm in found.values()] == [True, False, True, True]
    assert (
        len({dump_recipe(arm.model_copy(update={"phases": arm.phases[:-1]})) for arm in found.values()}) == 1
    )
    for at in range(0, tokens, STEP):
        half = 32 * STEP
        assert lr_of(found["exact"].phases, at) == pytest.approx(curve(at), abs=1e-2 * 1e-2)
        assert lr_of(found["optimizer-reset"].phases, at) == lr_of(found["exact"].phases, at)
        again = curve(at if at < half else at - half)
        assert lr_of(found["schedule-restarted"].phases, at) == pytest.approx(again, abs=1e-2 * 1e-2)
        assert lr_of(found["constant"].phases, at) == pytest.approx(curve(min(at, half)), abs=1e-2 * 1e-2)
    assert all(arm.phases[-1].mixture == base.phases[-1].mixture for arm in found.values())


def test_a_grid_has_all_combinations_and_names_that_tell_them():
    found = arms("grid", recipe(), OPTIONS["grid"])
    last = {name: (arm.phases[-1].schedule.max_lr, arm.phases[-1].tokens) for name, arm in found.items()}
    assert last == {
        "max_lr-1e-3-tokens-512": (1e-3, 512),
        "max_lr-1e-3-tokens-1024": (1e-3, 1024),
        "max_lr-3e-3-tokens-512": (3e-3, 512),
        "max_lr-3e-3-tokens-1024": (3e-3, 1024),
    }
    assert {one.phase for one in grids.arm_specs("grid", recipe(), OPTIONS["grid"])} == {1}
    first = Options(vary=(("optimizer.beta2", ("0.95", "0.99")),))
    assert {one.phase for one in grids.arm_specs("grid", recipe(), first)} == {0}
    mixtures = read_vary('phases.1.mixture={"zh":1},{"zh":0.5,"en":0.5}')
    found = arms("grid", recipe(), Options(vary=(mixtures,)))
    assert [shares(arm, "replay") for arm in found.values()] == [0, Fraction(1, 2)]
    for wrong in ("tokens", "tokens=", "tokens=1", "=1,2", "tokens=1,1"):
        with pytest.raises(UserError, match=f"--vary: '{wrong}' is not FIELD=VALUE,VALUE"):
            read_vary(wrong)
    with pytest.raises(UserError, match="--vary: is missing"):
        grids.arm_specs("grid", recipe())


def test_branches_fall_from_where_the_trunk_is_and_keep_its_moments():
    base = recipe(tokens=3072, schedule={"kind": "constant", "max_lr": 1e-2, "warmup": "10%"})
    found = arms("branch", base, OPTIONS["branch"])
    assert {name: arm.phases[-1].tokens for name, arm in found.items()} == {
        "anneal-5": STEP, "anneal-10": STEP, "anneal-20": 2 * STEP
    }  # fmt: skip
    varied = Options(vary=(("mixture.replay_ratio", ("0", "0.5")),), branched=(1, 1536))
    mixed = arms(
        "branch",
        recipe(schedule=base.phases[-1].schedule.model_dump(), mixture={"replay_ratio": 0.2}),
        varied,
    )
    assert [arm.phases[-1].mixture[0].replay_ratio for arm in mixed.values()] == [0, Fraction(1, 2)]
    for arm in [*found.values(), *mixed.values()]:
        *before, trunk, end = arm.phases
        assert list(before) == list(base.phases[:-1])
        assert trunk.tokens == 1536
        assert (end.name, end.keep_optimizer) == ("branch", True)
        curve = Curve(end.schedule, end.tokens)
        assert (curve(0), curve(end.tokens)) == (pytest.approx(1e-2), 0.0)
    with pytest.raises(UserError, match="--from: is missing"):
        grids.arm_specs("branch", base)


@settings(max_examples=25)  # each makes seven recipes
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
    del found["scratch"]
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


def test_text_of_the_base_s_own_stands_beside_true_replay_and_none():
    base = recipe(mixture={"zh": "9/10", "en": "1/10"})
    found = arms("self_replay", base, Options(own_text="out/generated/own-text"))
    assert {name: shares(arm, "replay") for name, arm in found.items()} == {
        "none": 0,
        "true-replay": Fraction(1, 4),
        "self-replay": Fraction(1, 4),
    }
    own = found["self-replay"]
    assert own.phases[-1].mixture[0].weights == {"zh": Fraction(3, 4), "own_text": Fraction(1, 4)}
    assert own.sources["own_text"].path == "out/generated/own-text"
    assert own.validation == base.validation, "scores stay on true text"
    assert [arm.phases[-1].schedule for arm in found.values()] == [base.phases[-1].schedule] * 3


def test_the_new_sources_keep_their_proportions_beside_the_base_s_own_text():
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json")
    for name, role in (("web", "new"), ("books", "new"), ("wiki", "replay")):
        tree["sources"][name] = {"path": f"data/{name}", "role": role}
    tree["phases"][0]["mixture"] = {"web": "3/10", "books": "1/10", "wiki": "6/10"}
    own = arms("self_replay", Recipe.model_validate(tree), Options(own_text="own"))["self-replay"]
    assert own.phases[0].mixture[0].weights == {
        "web": Fraction(9, 16), "books": Fraction(3, 16), "own_text": Fraction(1, 4),
    }  # fmt: skip
    tree["phases"][0]["mixture"] = {"replay_ratio": "1/2"}
    with pytest.raises(UserError, match="has no weights of the new sources; give each its weight"):
        arms("self_replay", Recipe.model_validate(tree), Options(own_text="own"))


def test_the_study_of_averages_has_the_model_that_is_averaged_and_replay_beside_it():
    found = arms("merge", recipe())
    assert [shares(arm, "replay") for arm in found.values()] == [
        0,
        Fraction(1, 100),
        Fraction(1, 20),
        Fraction(1, 4),
    ]
    assert CONTINUED in found
