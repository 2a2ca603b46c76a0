"""What the tests that launch runs share."""

import pytest

from tests.helpers import runs


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A tokenizer, shards and validation sets."""
    return runs.make_data(tmp_path_factory.mktemp("data"))
