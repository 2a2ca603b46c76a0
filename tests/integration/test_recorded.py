"""The numbers of short runs are those that commit 85773d8 recorded: a change that moves one shows here."""

import pytest

from tests.recorded import jobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All recorded runs, trained again."""
    folder = tmp_path_factory.mktemp("recorded")
    jobs.train(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", jobs.names())
def test_a_run_has_the_numbers_that_were_recorded(folder, name):
    environment, expected = jobs.recorded(name)
    exact = jobs.same_kind(environment)
    skip = not exact and name in jobs.ROUNDED
    different = jobs.differences(expected, jobs.read(folder / name), exact=exact, skip=skip)
    made_by = f"recorded with {environment}, now {jobs.environment()}"
    assert not different, "\n".join([f"{len(different)} numbers differ; {made_by}", *different[:20]])


@pytest.mark.slow
def test_the_killed_run_was_restored(folder):
    assert jobs.starts(folder / jobs.KILLED) == ["start", "new_phase", "restore"]


def test_every_recorded_file_is_compared():
    assert {file.stem for file in jobs.NUMBERS.glob("*.json")} == set(jobs.names())


def test_a_number_that_moves_is_noticed():
    """The comparison itself: what it must find, and what it must let pass."""
    before = [{"step": 1, "tokens": 256, "lr": 1e-3, "loss/train": 5.0, "eval/upstream/forgetting": 1e-9}]
    near = [before[0] | {"loss/train": 5.000001, "eval/upstream/forgetting": 2e-9, "loss/new": 1.0}]
    assert len(jobs.differences(before, near, exact=True)) == 2
    assert jobs.differences(before, near, exact=False) == []
    for change in (
        {"loss/train": 5.00001},
        {"lr": 1.0000001e-3},
        {"tokens": 257},
        {"eval/upstream/forgetting": 1e-5},
    ):
        assert len(jobs.differences(before, [before[0] | change], exact=False)) == 1, change
    assert len(jobs.differences(before, [{"step": 1}], exact=False)) == 4
    assert len(jobs.differences(before, [{"step": 1}], exact=False, skip=True)) == 2
    assert jobs.differences(before, [], exact=False) == ["steps [] in place of [1]"]
