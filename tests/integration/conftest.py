"""What the tests that launch runs share."""

import pytest

from tests.helpers import runs
from tests.helpers.ranks import Rank


@pytest.fixture(autouse=True)
def nothing_left():
    """No rank outlives its test."""
    yield
    Rank.end_all()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A tokenizer, shards and validation sets."""
    return runs.make_data(tmp_path_factory.mktemp("data"))
