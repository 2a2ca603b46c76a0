"""The models that arms start from: other sizes, random weights, and other rows for new pieces."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenization.errors import UserError, did_you_mean
from trainer.model.architecture import SIZES as WIDTHS
from trainer.model.architecture import read_config
from trainer.model.extend import extend_model
from trainer.recipe.schema import Recipe
from trainer.study.spec import SCALES, StartModel

_SHAPE = (
    *WIDTHS, "model_type", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "hidden_act", "attention_bias",
    "mlp_bias", "layer_norm_eps", "use_parallel_residual", "rotary_pct", "rotary_emb_base",
)  # fmt: skip
"""Fields of a base's config.json that make a model of the same shape with random weights."""

Fields = dict[str, Any]
"""Fields of the recipe by their dotted names."""


def sizes_of_study(recipe: Recipe, sizes: Sequence[str]) -> dict[str, Fields]:
    """Return per size of `--sizes` the fields that make it; one without a name if `sizes` is empty.

    Raises:
        UserError: a size is not known, cannot be made from the recipe's `init`, or two have one name.
    """
    if not sizes:
        return {"": {}}
    if recipe.model.init is not None:
        return {size: _scaled(recipe.model.init, size) for size in sizes}
    found = {Path(size).name: {"model.base": size} for size in sizes}
    for size in sizes:
        if size in SCALES and not Path(size).exists():
            fix = "the recipe has a model.base: give a list of bases, --sizes BASE,BASE"
            raise UserError("cannot be made from a base", field="--sizes", value=size, fix=fix)
    if len(found) < len(sizes):
        raise UserError("has two bases of one name", field="--sizes", value=",".join(sizes), fix="rename one")
    return found


def _scaled(init: Mapping[str, Any], size: str) -> Fields:
    """Return `model.init` with its widths, layers and heads multiplied."""
    if size not in SCALES:
        fix = did_you_mean(size, SCALES) or f"sizes are {', '.join(SCALES)}"
        raise UserError("is not a size", field="--sizes", value=size, fix=fix)
    fields = {}
    for name in (*WIDTHS, "num_key_value_heads"):
        if name in init:
            scaled = int(init[name]) * SCALES[size]
            if scaled.denominator != 1 and name != "num_hidden_layers":
                what = f"makes model.init.{name} {float(scaled):g}, which is not a whole number"
                fix = "choose an init that can be divided, or other sizes"
                raise UserError(what, field="--sizes", value=size, fix=fix)
            fields[f"model.init.{name}"] = max(1, round(scaled))
    return fields


def model_fields(
    model: StartModel, recipe: Recipe, unextended: Recipe | None, out: Path, seed: int, size: str = ""
) -> Fields:
    """Return the fields of the recipe that let an arm start from `model`, which is written if need be.

    Args:
        model: which.
        recipe: with the extended tokenizer, for the new rows.
        unextended: the recipe of the base before its extension, for the new rows.
        out: the study's directory, which gets the extended models.
        seed: of random rows.
        size: of the arm, for a name of its own.

    Raises:
        UserError: `unextended` is needed and missing or does not fit, or the base cannot be extended.
    """
    if model == "random_weights":
        assert recipe.model.base is not None
        config = read_config(recipe.model.base, field="model.base")
        shape = {name: config[name] for name in _SHAPE if config.get(name) is not None}
        return {"model.base": None, "model.init": shape}
    if unextended is None:
        what, fix = (
            "is missing: new rows are added to a base",
            "give the recipe of the base before its extension",
        )
        raise UserError(what, field="--unextended", fix=fix)
    if unextended.model.base is None:
        fix = "name the base before its extension"
        raise UserError("is missing", file="--unextended", field="model.base", fix=fix)
    if model == "unextended":
        return _plain(recipe, unextended)
    ending = f"{size and f'-{size}'}" + (f"-seed-{seed}" if model == "random" else "")
    path = out / "models" / f"{model}{ending}"
    if not (path / "config.json").exists():
        extend_model(unextended.model.base, recipe.model.tokenizer, path, model, seed)
        logging.getLogger("rewarm").info(f"{path}: the base, extended with rows of kind {model}")
    return {"model.base": str(path)}


def _plain(recipe: Recipe, unextended: Recipe) -> Fields:
    """Return the base, the tokenizer and the shards of the recipe before the extension."""
    if missing := set(recipe.sources) - set(unextended.sources):
        what = "is a source of --recipe alone"
        fix = "give both recipes the same sources, each with shards of its own tokenizer"
        raise UserError(what, field="--unextended: sources", value=min(missing), fix=fix)
    fields: Fields = {
        "model.base": unextended.model.base,
        "model.tokenizer": unextended.model.tokenizer,
        "validation.upstream": unextended.validation.upstream,
        "validation.downstream": unextended.validation.downstream,
    }
    paths = {f"sources.{name}.path": unextended.sources[name].path for name in recipe.sources}
    return {name: value for name, value in (fields | paths).items() if value is not None}
