"""What a run is: the odd rank is named with what differs, whatever it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import runs
from trainer.plan.make import make_plan
from trainer.recipe import load
from trainer.run.identity import (
    changes_since_start,
    code_version,
    digest,
    identity_of,
    odd_ranks,
    package_versions,
    write_first,
)
from trainer.storage.run_directory import RunDirectory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def identity(data, tmp_path):
    """The identity of a run over `data`, with overrides."""
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "recipe.yaml")
    return lambda *overrides: identity_of(make_plan(load.load_recipe(file, overrides), 1))


DIFFERENT = [
    ("phases.0.schedule.max_lr=2e-2", "recipe.phases.0.schedule.max_lr"),
    ("phases.0.tokens=1024", "recipe.phases.0.tokens"),
    ("seed=5", "recipe.seed"),
    ("stop_after=1024", "recipe.stop_after"),
    ("sources.en.path={data}/en-val", "sources.en.fingerprint"),
    ("validation.upstream={data}/zh-val", "validation.upstream.fingerprint"),
    ("model.init.num_hidden_layers=3", "model.num_hidden_layers"),
    ("micro_batch_size=4", "micro_batch_size"),
]


@pytest.mark.parametrize(("override", "field"), DIFFERENT, ids=[field for _, field in DIFFERENT])
def test_what_one_rank_has_otherwise_is_named_with_the_rank_and_its_host(data, identity, override, field):
    alike, other = identity(), identity(override.format(data=data), "sources.en.max_epochs=null")
    found = odd_ranks([alike, alike, other], ["a", "a", "b"])
    assert field in found
    assert found[field].startswith(
        f"{field} is {other[field]} on rank 2 (host b) and {alike[field]} on the other 2"
    )
    assert digest(alike) != digest(other)


def test_where_things_lie_is_not_what_the_run_is(data, identity, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(data)
    there = [f"sources.{name}.path={moved}/{name}" for name in ("en", "zh")]
    there += [f"validation.upstream={moved}/en-val", f"model.tokenizer={moved}/tokenizer"]
    assert identity(*there) == identity()


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=6))
def test_every_rank_that_differs_from_most_is_named_once(values):
    found = odd_ranks([{"field": value} for value in values], [f"host{rank}" for rank in range(len(values))])
    if len(set(values)) == 1:
        assert found == {}
        return
    most = max(sorted(set(values), key=values.index), key=values.count)
    for rank, value in enumerate(values):
        assert (f"host{rank}" in found["field"]) == (value != most)


def test_a_field_that_one_rank_does_not_have_differs():
    assert "rank 1 (host b)" in odd_ranks([{"x": "1", "y": "2"}, {"x": "1"}], ["a", "b"])["y"]


def test_other_packages_than_at_the_first_start_are_told(identity, tmp_path):
    run = RunDirectory(tmp_path)
    now = identity()
    assert list(changes_since_start(run, now)) == []
    write_first(run, {**now, "versions.torch": '"1.0"', "recipe.seed": "7"})
    write_first(run, now)  # what is there stays
    assert json.loads(run.identity.read_text())["versions.torch"] == '"1.0"'
    (line,) = changes_since_start(run, now)
    assert line.startswith('versions.torch has changed since the run began ("1.0" → ')
    run.identity.write_text("{")
    assert list(changes_since_start(run, now)) == []


def test_packages_and_code_are_part_of_it(identity):
    now = identity()
    assert {f"versions.{name}" for name in package_versions()} < now.keys()
    assert now["versions.code"] == json.dumps(code_version())
