"""The models of arms: sizes, random weights in a base's shape, and rows of an extension."""

import json
from pathlib import Path

import pytest

from tests.helpers import runs
from tokenization.errors import UserError
from trainer.recipe.load import dump_recipe, parse_recipe
from trainer.recipe.numbers import as_written
from trainer.recipe.schema import Recipe
from trainer.study.bases import model_fields, sizes_of_study
from trainer.study.spec import flow


def recipe(**model) -> Recipe:
    tree = runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json")
    tree["model"] = {**tree["model"], **model}
    if "base" in model:
        del tree["model"]["init"]
    return Recipe.model_validate(tree)


def with_fields(base: Recipe, fields) -> Recipe:
    return parse_recipe(dump_recipe(base), [f"{name}={flow(value)}" for name, value in fields.items()])


def test_an_init_is_scaled_in_width_depth_and_heads():
    small, medium = sizes_of_study(recipe(), ["small", "medium"]).values()
    init = with_fields(recipe(), small).model.init
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    assert [as_written(init[name]) for name in kept] == [16, 32, 1, 2]
    same = with_fields(recipe(), medium).model.init
    assert {name: as_written(value) for name, value in same.items()} == recipe().model.init
    assert sizes_of_study(recipe(), []) == {"": {}}


def test_bases_are_sizes_of_their_own_names():
    found = sizes_of_study(recipe(base="models/7b"), ["models/7b", "models/13b"])
    assert found == {"7b": {"model.base": "models/7b"}, "13b": {"model.base": "models/13b"}}


@pytest.mark.parametrize(
    ("model", "sizes", "why"),
    [
        ({}, ["medum"], "did you mean 'medium'"),
        ({"init": {"hidden_size": 30, "num_attention_heads": 3}}, ["small"], "num_attention_heads 1.5"),
        ({"base": "models/7b"}, ["small"], "give a list of bases"),
        ({"base": "models/7b"}, ["a/7b", "b/7b"], "two bases of one name"),
    ],
)
def test_sizes_that_cannot_be_made_are_told(model, sizes, why):
    with pytest.raises(UserError, match=f"^--sizes: .*{why}"):
        sizes_of_study(recipe(**model), sizes)


def test_scratch_has_the_base_s_shape_and_nothing_else_of_it(tmp_path):
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16,
              "num_attention_heads": 2, "vocab_size": 77, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = recipe(base=str(tmp_path))
    fields = model_fields("random_weights", base, None, tmp_path, 0)
    scratch = with_fields(base, fields).model
    assert scratch.base is None
    assert "vocab_size" not in scratch.init
    shape = {name: as_written(value) for name, value in scratch.init.items()}
    assert (shape["hidden_size"], shape["tie_word_embeddings"]) == (8, True)


def test_the_arm_without_extension_takes_its_own_tokenizer_and_shards(tmp_path):
    base = recipe(base="extended")
    with pytest.raises(UserError, match="--unextended: is missing"):
        model_fields("mean", base, None, tmp_path, 0)
    plain = recipe(base="plain")
    plain = with_fields(plain, {"sources.zh.path": "plain/zh", "model.tokenizer": "plain/t"})
    found = with_fields(base, model_fields("unextended", base, plain, tmp_path, 0))
    assert found.model == plain.model
    assert (found.sources, found.validation) == (plain.sources, plain.validation)
    fewer = parse_recipe(
        dump_recipe(plain),
        ['sources={"zh":{"path":"x","role":"new"}}', 'phases.0.mixture={"zh":1}'],
    )
    with pytest.raises(UserError, match="'en' is a source of --recipe alone"):
        model_fields("unextended", base, fewer, tmp_path, 0)
