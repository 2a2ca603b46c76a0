"""Every shipped recipe trains on a tiny stand-in: its phases, shares, schedules, sets and preset."""

import json

import pytest

from tests.helpers import runs, stand_in
from trainer.metrics.jsonl import read_metrics
from trainer.recipe.load import load_recipe

pytestmark = pytest.mark.slow

RECIPES = sorted((runs.ROOT / "launch" / "recipes").glob("*.yaml"))
FIRST = "llama2-13b-zh"
"""Its last checkpoint is the base of a recipe."""


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run directory of every recipe, all trained in one launch."""
    folder = tmp_path_factory.mktemp("shipped")
    found, jobs = {}, []
    for path in sorted(RECIPES, key=lambda path: path.stem != FIRST):
        recipe, run = load_recipe(path), folder / path.stem
        last = folder / FIRST / "checkpoints" / f"step-{2 * stand_in.STEPS:08d}"
        ours = recipe.model.base is not None and recipe.model.base.startswith("runs/llama2")
        jobs.append(runs.Job(stand_in.stand_in(path, data, run, last if ours else None)))
        found[path.stem] = run
    runs.launch_several(folder, jobs, 1)
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_trains_to_its_end_by_its_schedule_and_watches_all_its_sets(trained, path):
    recipe, run = load_recipe(path), trained[path.stem]
    lineage = [json.loads(line) for line in (run / "lineage.jsonl").open(encoding="utf-8")]
    assert [entry["kind"] for entry in lineage] == ["start", *["new_phase"] * (len(recipe.phases) - 1)]
    records = read_metrics(run)
    assert records[-1]["step"] == stand_in.STEPS * len(recipe.phases)
    for name in recipe.validation.paths:
        assert f"eval/{name}/bits_per_byte" in records[-1]
    for role in recipe.validation.means():
        assert f"eval/{role}/bits_per_byte" in records[-1]
    highest = max(phase.schedule.max_lr for phase in recipe.phases)
    assert 0 < max(record["lr"] for record in records if "lr" in record) <= highest


def test_a_base_that_is_a_checkpoint_of_ours_is_gone_on_from_where_its_schedule_ended(trained):
    recipe = load_recipe(runs.ROOT / "launch" / "recipes" / "llama2-13b-zh-better-text.yaml")
    first = next(
        record for record in read_metrics(trained["llama2-13b-zh-better-text"]) if record["step"] == 1
    )
    assert first["lr"] == recipe.phases[0].schedule.max_lr == 1e-5
