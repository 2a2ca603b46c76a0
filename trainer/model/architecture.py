"""What the model is, before any weight is read: its Hugging Face config, and what is wrong with it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from trainer.errors import Problems, UserError, nearest
from trainer.model.directory import fetch
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

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Config fields that every supported `model_type` has."""

ROPE_FIELDS = ("rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base")
"""Older names, which transformers still takes, of what goes into `rope_parameters`."""

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
    except Problems as found:
        return found.problems
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
    check_type(config.get("model_type"), field="model.base", file=recipe.model.base)
    check_sizes(config, field="model.base", file=recipe.model.base)
    return config


def check_sizes(config: Mapping[str, Any], *, field: str, file: str | Path) -> None:
    """Refuses a config.json that leaves a size to the reader's guess.

    Raises:
        UserError: a size is missing or is not a whole number of at least 1.
    """
    for name in (*SIZES, "vocab_size"):
        if type(config.get(name)) is not int or config[name] < 1:
            what = f"its config.json has {name}: {config.get(name)!r}, which is not a size"
            raise UserError(what, field=field, value=str(file), mend="copy the model again")


def read_config(base: str | Path, field: str | None = None) -> dict[str, Any]:
    """The config.json of a model directory or of a hub id.

    Raises:
        UserError: neither a model directory nor a model on the hub; or config.json is damaged.
        InfrastructureError: the hub cannot be reached.
    """
    path = Path(base) / "config.json"
    if not path.is_file():
        path = fetch(base, ["config.json"], field) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", file=path, mend="copy the model again") from error
    if not isinstance(config, dict):
        raise UserError("holds no config fields", file=path, mend="copy the model again")
    return config


def _from_init(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """`model.init` completed with the defaults of its `model_type` (llama), and checked."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    fields = {name: _number(value) for name, value in (recipe.model.init or {}).items()}
    model_type = fields.pop("model_type", "llama")
    check_type(model_type, field="model.init.model_type")
    config_class = CONFIG_MAPPING[model_type]
    if problems := list(_init_problems(fields, config_class)):
        raise Problems(problems)
    fields.setdefault("max_position_embeddings", max(recipe.seq_len, 2048))
    fields.setdefault("vocab_size", vocab_size)
    try:
        config: dict[str, Any] = config_class(**fields).to_dict()
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"is refused by transformers ({reason})", field="model.init") from error
    return config


def _init_problems(fields: Mapping[str, Any], config_class: Any) -> Iterator[UserError]:
    """Fields of `model.init` that this class of configs does not have, or cannot have so."""
    from transformers.activations import ACT2FN

    known = [*config_class.__annotations__, *ROPE_FIELDS]
    for name in fields:
        if name not in known:
            near = nearest(name, known) or f"see {config_class.__name__} in transformers"
            yield UserError("is not a field of the model's config", field=f"model.init.{name}", mend=near)
    sizes = {name: fields.get(name, getattr(config_class, name)) for name in SIZES}
    wrong = [name for name, size in sizes.items() if type(size) is not int or size < 1]
    for name in wrong:
        yield UserError("is no whole number of at least 1", field=f"model.init.{name}", value=sizes[name])
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if not wrong and hidden % heads:
        what, mend = (
            f"is not a multiple of num_attention_heads {heads}",
            f"take {-(-hidden // heads) * heads}",
        )
        yield UserError(what, field="model.init.hidden_size", value=hidden, mend=mend)
    activation = str(fields.get("hidden_act", config_class.hidden_act))
    if activation not in ACT2FN:
        near = nearest(activation, ACT2FN) or "silu and gelu are usual"
        yield UserError("is no activation", field="model.init.hidden_act", value=activation, mend=near)


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


def check_type(model_type: Any, field: str, file: object = None) -> None:
    """Raises UserError where `model_type` is not one that we train."""
    if model_type not in SUPPORTED:
        mend = nearest(str(model_type), SUPPORTED) or f"supported are {', '.join(SUPPORTED)}"
        raise UserError("is no supported model_type", file=file, field=field, value=model_type, mend=mend)


def _shape_problems(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[UserError]:
    """Sizes that do not go together, and an attention that cannot run here."""
    where = "model.base" if recipe.model.base else "model.init"
    heads, context = config["num_attention_heads"], config.get("max_position_embeddings")
    groups = config.get("num_key_value_heads") or heads
    if heads % groups:
        field, mend = f"{where}.num_key_value_heads", "choose a divisor of the heads"
        yield UserError(f"does not divide {heads} heads", field=field, value=groups, mend=mend)
    if context and recipe.seq_len > context:
        what = f"is above the model's max_position_embeddings {context}"
        mend = "shorten seq_len, or extend the model's context first"
        yield UserError(what, field="seq_len", value=recipe.seq_len, mend=mend)
    if recipe.model.attention == "flash_attention_2":
        field, value = "model.attention", "flash_attention_2"
        if importlib.util.find_spec("flash_attn") is None:
            what = "needs the package flash-attn, which is not installed"
            yield UserError(what, field=field, value=value, mend="install it, or take auto")
        if recipe.model.dtype == "fp32":
            what, mend = "computes in bf16 or fp16 only", "set model.dtype to bf16, or take sdpa"
            yield UserError(what, field=field, value=value, mend=mend)


def _vocabulary_problems(recipe: Recipe, config: Mapping[str, Any], vocab_size: int) -> Iterator[UserError]:
    """The embedding must have a row for each piece, and no more than padding beyond."""
    rows, base, tokenizer = config["vocab_size"], recipe.model.base, recipe.model.tokenizer
    if vocab_size <= rows < vocab_size + MOST_PADDING:
        return
    if base is None:
        what = f"does not fit the tokenizer's {vocab_size} pieces"
        yield UserError(what, field="model.init.vocab_size", value=rows, mend="leave it out")
        return
    mend = f"run: rewarm model extend --base {base} --tokenizer {tokenizer} --out DIR"
    if rows > vocab_size:
        mend = "give the tokenizer that the base was trained with, or an extension of it"
    what = f"has {rows} embedding rows and the tokenizer {tokenizer} has {vocab_size} pieces"
    yield UserError(what, field="model.base", value=base, mend=mend)
