"""What the model is, before any weight is read: its Hugging Face config, and what is wrong with it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from trainer.errors import InfrastructureError, UserError, nearest
from trainer.model.trainable import phase_problems
from trainer.numbers import exact
from trainer.recipe import Recipe

EMBEDDINGS = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "mistral": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
}
"""Names of input and output embedding in a model's files, by `model_type`."""

SUPPORTED = tuple(EMBEDDINGS)
"""`model_type`s whose logits are the plain product of last hidden state and output embedding, as our
chunked loss computes them."""

MOST_PADDING = 512
"""A base may have so many rows more than the tokenizer has pieces (Pythia: 27, Qwen2.5: 399)."""


def check(recipe: Recipe, vocab_size: int) -> list[UserError]:
    """All that is wrong with the model and what is trained of it; `vocab_size` is the tokenizer's pieces.

    Reads config.json only, and so is cheap enough to run before any process group starts.

    Raises:
        InfrastructureError: the hub cannot be reached.
    """
    try:
        config = resolve(recipe, vocab_size)
    except UserError as error:
        return [error]
    return [
        *_shape_problems(recipe, config),
        *_vocabulary_problems(recipe, config, vocab_size),
        *phase_problems(recipe, config),
    ]


def resolve(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """The model's whole config as a mapping: the base's config.json, or `model.init` with defaults.

    Raises:
        UserError: no such base, no config.json in it, a model_type that is not supported, or an
            unknown or malformed field of `model.init`.
        InfrastructureError: the hub cannot be reached.
    """
    if recipe.model.base is None:
        return _from_init(recipe, vocab_size)
    config = read_config(recipe.model.base, field="model.base")
    _check_type(config.get("model_type"), field="model.base", file=recipe.model.base)
    return config


def read_config(base: str | Path, field: str | None = None) -> dict[str, Any]:
    """The config.json of a model directory or of a hub id.

    Raises:
        UserError: neither a model directory nor a model on the hub; or config.json is damaged.
        InfrastructureError: the hub cannot be reached.
    """
    path = Path(base) / "config.json"
    if not path.is_file():
        path = _hub_config(base, field)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", file=path, mend="copy the model again") from error
    if not isinstance(config, dict):
        raise UserError("holds no config fields", file=path, mend="copy the model again")
    return config


def _hub_config(base: str | Path, field: str | None) -> Path:
    """Where config.json of the hub id `base` has been fetched to."""
    name = str(base)
    if Path(name).exists():
        mend = "give a directory with config.json and the weights, such as `rewarm export` writes"
        raise UserError("is no model directory: it has no config.json", field=field, value=name, mend=mend)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            "does not exist", field=field, value=name, mend="give a model directory or a hub id, org/name"
        )
    from transformers.utils import cached_file

    try:
        return Path(cached_file(name, "config.json"))
    except OSError as error:
        message = " ".join(str(error).split())
        if "connect" in message or "offline" in message:
            mend = "it is no directory here either; download it and give its path"
            raise InfrastructureError(f"{field}: {name!r} cannot be fetched from the hub; {mend}") from error
        raise UserError(f"is no directory and not on the hub ({message})", field=field, value=name) from error


def _from_init(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """`model.init` completed with the defaults of its `model_type` (llama), and checked."""
    from transformers import AutoConfig

    fields = dict(recipe.model.init or {})
    model_type = fields.pop("model_type", "llama")
    _check_type(model_type, field="model.init.model_type")
    defaults = AutoConfig.for_model(model_type).to_dict()
    unknown = [name for name in fields if name not in defaults]
    if unknown:
        mend = nearest(unknown[0], defaults) or f"see the config of {model_type} in transformers"
        raise UserError("is not a field of its config", field=f"model.init.{unknown[0]}", mend=mend)
    given = {name: _number(value) for name, value in fields.items()}
    given.setdefault("max_position_embeddings", max(recipe.seq_len, defaults["max_position_embeddings"]))
    given.setdefault("vocab_size", vocab_size)
    try:
        config: dict[str, Any] = AutoConfig.for_model(model_type, **given).to_dict()
    except (TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"is refused by transformers ({reason})", field="model.init") from error
    return config


def file_name(model_type: str, name: str) -> str:
    """A weight's name in files, from its name in transformers' module (GPT-NeoX's differ)."""
    return EMBEDDINGS[model_type][1] if name == "lm_head.weight" else name


def _number(value: Any) -> Any:
    """Recipes keep numbers as written: an `int` where the number is written whole, else a `float`."""
    if isinstance(value, Mapping):
        return {name: _number(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_number(inner) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        number: Fraction = exact(value)
    except ValueError:
        return value
    return int(number) if number.denominator == 1 and "." not in value else float(number)


def _check_type(model_type: Any, field: str, file: object = None) -> None:
    if model_type not in SUPPORTED:
        mend = nearest(str(model_type), SUPPORTED) or f"supported are {', '.join(SUPPORTED)}"
        raise UserError("is no supported model_type", file=file, field=field, value=model_type, mend=mend)


def _shape_problems(recipe: Recipe, config: Mapping[str, Any]) -> list[UserError]:
    """Sizes that do not go together."""
    where = "model.base" if recipe.model.base else "model.init"
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    context = config.get("max_position_embeddings")
    problems = []
    if hidden % heads and not config.get("head_dim"):
        mend = "choose a multiple"
        problems.append(
            UserError(
                f"is not divisible by {heads} heads", field=f"{where}.hidden_size", value=hidden, mend=mend
            )
        )
    if heads % groups:
        mend = "choose a divisor of the heads"
        problems.append(
            UserError(
                f"does not divide {heads} heads",
                field=f"{where}.num_key_value_heads",
                value=groups,
                mend=mend,
            )
        )
    if context and recipe.seq_len > context:
        mend = "shorten seq_len, or extend the model's context first"
        problems.append(
            UserError(
                f"is above the model's max_position_embeddings {context}",
                field="seq_len",
                value=recipe.seq_len,
                mend=mend,
            )
        )
    if recipe.model.attention == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            problems.append(
                UserError(
                    "needs the package flash-attn, which is not installed",
                    field="model.attention",
                    value="flash_attention_2",
                    mend="install it, or take auto",
                )
            )
        if recipe.model.dtype == "fp32":
            problems.append(
                UserError(
                    "computes in bf16 or fp16 only",
                    field="model.attention",
                    value="flash_attention_2",
                    mend="set model.dtype to bf16, or take sdpa",
                )
            )
    return problems


def _vocabulary_problems(recipe: Recipe, config: Mapping[str, Any], vocab_size: int) -> list[UserError]:
    """The embedding must have a row for each piece, and no more than padding beyond."""
    rows = config["vocab_size"]
    if vocab_size <= rows < vocab_size + MOST_PADDING:
        return []
    if recipe.model.base is None:
        return [
            UserError(
                f"does not fit the tokenizer's {vocab_size} pieces",
                field="model.init.vocab_size",
                value=rows,
                mend="leave it out",
            )
        ]
    if rows > vocab_size:
        mend = "give the tokenizer that the base was trained with, or an extension of it"
    else:
        given = f"--base {recipe.model.base} --tokenizer {recipe.model.tokenizer}"
        mend = f"run: rewarm model extend {given} --out DIR"
    what = f"has {rows} embedding rows and the tokenizer {recipe.model.tokenizer} has {vocab_size} pieces"
    return [UserError(what, field="model.base", value=recipe.model.base, mend=mend)]
