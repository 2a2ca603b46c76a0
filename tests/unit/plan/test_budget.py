"""What a plan says of a forgetting budget: bounds, decisions, supply and cost."""

import pytest

from tests.helpers import runs
from tokenization.errors import UserErrors
from trainer.plan.budget import budget_lines, budget_plans
from trainer.plan.make import make_plan
from trainer.recipe.load import load_recipe

STEP = 8 * 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def file(data, tmp_path):
    tree = runs.recipe(data, tmp_path / "run")
    tree["phases"][0]["tokens"] = 100 * STEP
    budget = {"forgetting_budget": 0.02, "replay_ratio": "25%", "decide_every": "5%", "measured_samples": 16}
    tree["phases"][0]["mixture"] = budget
    tree["sources"]["zh"]["max_epochs"] = None
    tree["sources"]["en"]["max_epochs"] = None
    return str(runs.write(tree, tmp_path / "recipe.yaml"))


def planned(file, *overrides):
    return make_plan(load_recipe(file, overrides), 1)


def test_a_plan_without_a_budget_says_nothing_of_it(file):
    plan = planned(file, "phases.0.mixture={replay_ratio: 25%}")
    assert (budget_plans(plan), list(budget_lines(plan))) == ([], [])


def test_bounds_decisions_and_cost(file):
    (one,) = budget_plans(planned(file))
    assert (one["start"], one["highest"]) == (0.25, 614 / 1024)
    assert (one["decisions"], one["decide_every_tokens"]) == (20, 5 * STEP)
    assert one["replay_supply"] is None
    assert one["cost"] == pytest.approx(16 * 32 / 3 / (5 * STEP))
    text = "\n".join(budget_lines(planned(file)))
    assert "raise decide_every" in text
    assert "model.average measures averaged ones" in text
    assert "averaged ones" not in "\n".join(budget_lines(planned(file, "model.average={half_life: 1000}")))


def test_little_replay_text_is_seen_before_the_run(file):
    plain = planned(file)
    samples = plain.mixture.sizes[plain.mixture.names.index("en")].samples
    limit = f"{800 * 3 // 10}/{samples}"  # three tenths of the phase
    (one,) = budget_plans(planned(file, f"sources.en.max_epochs={limit}"))
    assert one["replay_supply"] == pytest.approx(0.3, abs=0.01)
    assert 0.27 < one["highest"] <= 0.31
    with pytest.raises(UserErrors, match=r"sources\.en\.max_epochs.*is not enough"):
        planned(file, f"sources.en.max_epochs={800 // 10}/{samples}")  # the start needs a quarter


def test_an_audit_set_is_missed_or_is_other_text(file, data):
    audit = {"none": "null", "same": data / "en-val", "other": data / "zh-val"}
    told = {
        name: "\n".join(budget_lines(planned(file, f"validation.audit={one}"))) for name, one in audit.items()
    }
    assert "validation.audit is not given" in told["none"]
    assert "does not audit" in told["same"]
    assert "audit" not in told["other"]


def test_averages_need_memory_and_disk(file):
    plain, averaged = planned(file), planned(file, "model.average={half_life: 1000}")
    assert averaged.memory.optimizer > plain.memory.optimizer
