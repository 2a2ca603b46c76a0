"""What launchers add to the command line of a rank is taken off."""

import importlib.util

import pytest

from tests.helpers import runs


@pytest.fixture(scope="module")
def train():
    """The script that launchers start, as a module."""
    spec = importlib.util.spec_from_file_location("train_script", runs.SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "added", [["--local_rank=3"], ["--local-rank=3"], ["--local_rank", "3"], ["--local-rank", "3"], []]
)
def test_the_local_rank_of_any_launcher_is_taken_off(train, added):
    words = ["r.yaml", "sources.--local_rank=1", "seed=3"]
    assert train.without_local_rank([*added, *words]) == words
