"""The base writes its own replay before the arms are planned, and not again."""

from __future__ import annotations

import pytest

from tests.helpers.model_tiny import RECIPE, exported_tiny
from tokenization.errors import UserError
from tokenization.shards.store import open_tokens
from trainer.recipe.load import parse_recipe
from trainer.study.own_text import own_text_prefix, write_own_text


def test_the_base_writes_what_the_arm_takes_once(tmp_path):
    base = exported_tiny(tmp_path)
    words = [f"model.base={base}", "model.init=null", "phases.0.tokens=6400", "seed=7"]
    recipe = parse_recipe(RECIPE, words)
    write_own_text(recipe, tmp_path / "study", 1)
    store = open_tokens(own_text_prefix(tmp_path / "study"))
    assert store.samples(recipe.seq_len) * recipe.seq_len >= 6400 / 4
    assert (store.generated["model"], store.generated["seed"]) == (str(base), 7)
    before = own_text_prefix(tmp_path / "study").with_suffix(".bin").stat().st_mtime_ns
    write_own_text(recipe, tmp_path / "study", 1)
    assert own_text_prefix(tmp_path / "study").with_suffix(".bin").stat().st_mtime_ns == before


def test_a_base_that_does_not_exist_yet_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"model\.base: is missing: the base writes its own replay"):
        write_own_text(parse_recipe(RECIPE), tmp_path, 1)
