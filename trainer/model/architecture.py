"""Resolve and check the model's Hugging Face config, before any weight is read."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenization.errors import UserError, UserErrors, did_you_mean
from trainer.model.rope import context_problems, phase_configs, rope_type
from trainer.model.trained import phase_problems
from trainer.recipe.numbers import as_written
from trainer.recipe.schema import Recipe
from trainer.storage.hub import fetch_from_hub

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

BUFFERS = re.compile(r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attention\.(masked_)?bias)$")
"""Tensors in the files of some older models that are not weights: they are computed from config.json."""

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Config fields that every supported `model_type` has."""

ROPE_FIELDS = ("rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base")
"""Older names of the fields in `rope_parameters`, which transformers still accepts."""

MOST_PADDING = 512
"""Fewer rows than this beyond the tokenizer's pieces are padding (Pythia: 27, Qwen2.5: 399); whether more
are, only the base's own tokenizer can tell."""


def check_config(
    config: Mapping[str, Any],
    recipe: Recipe,
    vocab_size: int,
    known_pieces: int | None = None,
    first: int = 0,
    *,
    begun: bool = False,
) -> list[UserError]:
    """Find all that is wrong with a resolved config, and with what the phases make and train of the model.

    `vocab_size` is the number of the tokenizer's pieces, `known_pieces` that of the tokenizer that the base
    was made with, if that is known. `first` and `begun` are those of `phase_configs`.
    """
    try:
        configs = dict(enumerate(phase_configs(recipe, config, first, begun=begun), first))
    except UserError as problem:
        return [problem]
    return [
        *_shape_problems(recipe, config),
        *context_problems(recipe, configs),
        *_sequence_problems(recipe, configs),
        *_vocabulary_problems(recipe, config, vocab_size, known_pieces),
        *_not_trainable(recipe, config),
        *phase_problems(recipe, config),
    ]


def resolve_config(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """Return the model's whole config as a mapping: the base's config.json, or `model.init` with defaults.

    Read it once per start: for a hub id it is a request to the hub.

    Raises:
        UserError: no such base, no config.json in it, a model_type that is not supported, or
            (`UserErrors`) unknown or malformed fields of `model.init`.
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
            raise UserError(what, field=field, value=str(file), fix="copy the model again")


def read_config(base: str | Path, field: str | None = None) -> dict[str, Any]:
    """Read the config.json of a model directory or of a hub id.

    Raises:
        UserError: `base` is neither a model directory nor a model on the hub, or config.json is damaged.
        InfrastructureError: the hub cannot be reached.
    """
    path = Path(base) / "config.json"
    if not path.is_file():
        path = fetch_from_hub(base, ["config.json"], field) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", file=path, fix="copy the model again") from error
    if not isinstance(config, dict):
        raise UserError("does not hold config fields", file=path, fix="copy the model again")
    return config


def _from_init(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """Complete `model.init` with the defaults of its `model_type` (llama), and check it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    fields = {name: as_written(value) for name, value in (recipe.model.init or {}).items()}
    model_type = fields.pop("model_type", "llama")
    check_type(model_type, field="model.init.model_type")
    config_class = CONFIG_MAPPING[model_type]
    if problems := list(_init_problems(fields, config_class)):
        raise UserErrors(problems)
    fields.setdefault("max_position_embeddings", max(recipe.seq_len, 2048))
    fields.setdefault("vocab_size", vocab_size)
    try:
        config: dict[str, Any] = config_class(**fields).to_dict()
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"is refused by transformers ({reason})", field="model.init") from error
    return config


def _init_problems(fields: Mapping[str, Any], config_class: Any) -> Iterator[UserError]:
    """Find fields of `model.init` that this config class does not have, and values that it cannot have."""
    from transformers.activations import ACT2FN

    known = [*config_class.__annotations__, *ROPE_FIELDS]
    for name in fields:
        if name not in known:
            fix = did_you_mean(name, known) or f"see {config_class.__name__} in transformers"
            yield UserError("is not a field of the model's config", field=f"model.init.{name}", fix=fix)
    sizes = {name: fields.get(name, getattr(config_class, name)) for name in SIZES}
    wrong = [name for name, size in sizes.items() if type(size) is not int or size < 1]
    for name in wrong:
        yield UserError("is not a whole number of at least 1", field=f"model.init.{name}", value=sizes[name])
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if not wrong and hidden % heads:
        what, fix = f"is not a multiple of num_attention_heads {heads}", f"use {-(-hidden // heads) * heads}"
        yield UserError(what, field="model.init.hidden_size", value=hidden, fix=fix)
    activation = str(fields.get("hidden_act", config_class.hidden_act))
    if activation not in ACT2FN:
        fix = did_you_mean(activation, ACT2FN) or "silu and gelu are usual"
        yield UserError("is not an activation", field="model.init.hidden_act", value=activation, fix=fix)


def file_name(model_type: str, name: str) -> str:
    """Return a weight's name in files, from its name in transformers' module (they differ for GPT-NeoX)."""
    return EMBEDDINGS[model_type][1] if name == "lm_head.weight" else name


def check_type(model_type: Any, field: str, file: object = None) -> None:
    """Raise a UserError if `model_type` is not one that this trainer supports."""
    if model_type not in SUPPORTED:
        fix = did_you_mean(str(model_type), SUPPORTED) or f"supported are {', '.join(SUPPORTED)}"
        raise UserError("is not a supported model_type", file=file, field=field, value=model_type, fix=fix)


def _shape_problems(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[UserError]:
    """Find sizes that do not fit together, and an attention that cannot run here."""
    where = "model.base" if recipe.model.base else "model.init"
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    if heads % groups:
        field, fix = f"{where}.num_key_value_heads", "choose a divisor of num_attention_heads"
        yield UserError(f"does not divide {heads} heads", field=field, value=groups, fix=fix)
    if recipe.model.attention == "flash_attention_2":
        field, value = "model.attention", "flash_attention_2"
        if importlib.util.find_spec("flash_attn") is None:
            what = "needs the package flash-attn, which is not installed"
            yield UserError(what, field=field, value=value, fix="install it, or use auto")
        if recipe.model.dtype == "fp32":
            what, fix = "computes in bf16 or fp16 only", "set model.dtype to bf16, or use sdpa"
            yield UserError(what, field=field, value=value, fix=fix)
    if recipe.model.loss == "liger" and importlib.util.find_spec("liger_kernel") is None:
        what, fix = "needs the package liger-kernel, which is not installed", "install it, or use auto"
        yield UserError(what, field="model.loss", value="liger", fix=fix)


def has_fast_documents(config: Mapping[str, Any]) -> bool:
    """Tell whether the kernels of `model/documents.py` compute all that such a model's attention needs."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    dropout, window = config.get("attention_dropout") or 0.0, config.get("sliding_window")
    return size % 8 == 0 and size <= 256 and dropout == 0.0 and window is None


def _sequence_problems(recipe: Recipe, configs: Mapping[int, Mapping[str, Any]]) -> Iterator[UserError]:
    """Find what does not divide among the ranks that share a sample, or depends on all of its positions."""
    parts, field = recipe.sequence_parallel_size, "sequence_parallel_size"
    if parts == 1:
        return
    for number in configs:
        length = recipe.seq_len_of(number)
        if length % parts and length not in [recipe.seq_len_of(before) for before in range(number)]:
            where = "seq_len" if recipe.phases[number].seq_len is None else f"phases.{number}.seq_len"
            near = (length - length % parts, length - length % parts + parts)
            fix = f"use {' or '.join(str(size) for size in near if size)}"
            yield UserError(f"does not divide into {parts} parts", field=where, value=length, fix=fix)
    config = next(iter(configs.values()))
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    fits = [size for size in range(1, heads + 1) if heads % size == 0 and _fit_keys(groups, size)]
    if parts not in fits:
        shown = f"{heads} heads" if heads == groups else f"{heads} heads and {groups} key and value heads"
        what = f"does not divide the model's {shown} evenly"
        yield UserError(what, field=field, value=parts, fix=f"use one of {fits}")
    if kinds := {"dynamic", "longrope"} & {rope_type(one) for one in configs.values()}:
        what = (
            f"cannot be used with RoPE of type {min(kinds)}, which depends on the longest position in a pass"
        )
        yield UserError(what, field=field, value=parts, fix="use 1, or another RoPE")


def _fit_keys(groups: int, parts: int) -> bool:
    """Tell whether each of `parts` ranks gets as many key and value heads, or each head as many ranks."""
    return groups % parts == 0 or parts % groups == 0


def _vocabulary_problems(
    recipe: Recipe, config: Mapping[str, Any], vocab_size: int, known_pieces: int | None
) -> Iterator[UserError]:
    """Check that the embedding has a row for each piece, and beyond them no more than padding."""
    rows, base, tokenizer = config["vocab_size"], recipe.model.base, recipe.model.tokenizer
    used = rows if known_pieces is None else min(known_pieces, rows)
    if vocab_size <= rows and used < vocab_size + MOST_PADDING:
        return
    if base is None:
        what = f"does not fit the tokenizer's {vocab_size} pieces"
        yield UserError(what, field="model.init.vocab_size", value=rows, fix="remove it")
        return
    fix = f"run: rewarm model extend --base {base} --tokenizer {tokenizer} --out DIR"
    if rows > vocab_size:
        fix = "give the tokenizer that the base was trained with, or an extension of it"
        if known_pieces is None:
            fix += "; if the rows are padding, put the base's own tokenizer files beside its config.json"
    what = f"has {rows} embedding rows and the tokenizer {tokenizer} has {vocab_size} pieces"
    yield UserError(what, field="model.base", value=base, fix=fix)


def _not_trainable(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[UserError]:
    """Find what a config says of its weights that cannot be trained as they are."""
    where, rows = "model.base" if recipe.model.base else "model.init", config["vocab_size"]
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
        what = f"is quantized ({method or 'quantization_config'} in its config.json) and cannot be trained"
        fix = "give the model that it was quantized from"
        yield UserError(what, field=where, value=recipe.model.base, fix=fix)
    pad = config.get("pad_token_id")
    if pad is not None and (type(pad) is not int or not 0 <= pad < rows):
        what = f"is not a row of the {rows} that the embedding has"
        fix = "set it to null, or to the id of a special token"
        yield UserError(what, field=f"{where}.pad_token_id", value=pad, fix=fix)
