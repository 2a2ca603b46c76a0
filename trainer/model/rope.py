"""The fields of config.json that tell the rotary position embedding, in either form; phases change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenization.errors import UserError, did_you_mean
from trainer.recipe.numbers import as_written
from trainer.recipe.schema import Recipe

KEPT = ("rope_theta", "partial_rotary_factor")
"""Fields that a change of the scaling keeps."""

OLDER = ("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct")
"""Fields of config.json for what `rope_parameters` holds."""

CHANGED = frozenset({"rope_parameters", "max_position_embeddings", *OLDER})
"""Fields of config.json that a phase may change."""


def phase_configs(
    recipe: Recipe, config: Mapping[str, Any], first: int = 0, *, begun: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the model's config in the phases from the `first` on; `config` is the model's before it.

    If the first of them has `begun`, its change is in `config` already.

    Raises:
        UserError: transformers does not know such a RoPE.
    """
    current = dict(config)
    for number in range(first, len(recipe.phases)):
        rope = recipe.phases[number].rope
        if rope is not None and not (begun and number == first):
            current = with_rope(current, rope, recipe.seq_len_of(number), f"phases.{number}.rope")
        yield current


def with_rope(config: Mapping[str, Any], rope: Mapping[str, Any], seq_len: int, field: str) -> dict[str, Any]:
    """Return the config of a model with another RoPE, and room for samples of `seq_len` tokens.

    Theta stays unless it is given; the scaling stays unless a field of one is given, and is replaced as a
    whole then. A scaling is relative to the context that the model had without one.

    Raises:
        UserError: transformers does not know such a RoPE; it names `field`.
    """
    from transformers import CONFIG_MAPPING
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

    known = RopeParameters.__annotations__
    for name in rope:
        if name not in known:
            fix = did_you_mean(name, known) or f"known are {', '.join(known)}"
            raise UserError("is not a field of rope_parameters", field=f"{field}.{name}", fix=fix)
    config_class, context = CONFIG_MAPPING[config["model_type"]], int(config["max_position_embeddings"])
    before = dict(config_class.from_dict(dict(config)).to_dict()["rope_parameters"])
    given = {name: as_written(value) for name, value in rope.items()}
    after = {**before, **given}
    if set(given) - set(KEPT):
        after = {name: before[name] for name in KEPT if before.get(name) is not None} | given
        kind = after.setdefault("rope_type", "default")
        kinds = ("default", *ROPE_INIT_FUNCTIONS)
        if kind not in kinds:
            fix = did_you_mean(str(kind), kinds) or f"known are {', '.join(kinds)}"
            raise UserError("is not a kind of RoPE", field=f"{field}.rope_type", value=kind, fix=fix)
        if kind not in ("default", "linear"):
            unscaled = before.get("original_max_position_embeddings") or context
            after.setdefault("original_max_position_embeddings", unscaled)
    found = {name: value for name, value in config.items() if name not in OLDER}
    found |= {"rope_parameters": after, "max_position_embeddings": max(context, seq_len)}
    try:
        config_class.from_dict(dict(found))
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).strip("\"'")
        raise UserError(f"is refused by transformers ({reason})", field=field) from error
    return found


def context_problems(recipe: Recipe, configs: Mapping[int, Mapping[str, Any]]) -> Iterator[UserError]:
    """Find phases whose samples, or validation text whose windows, are longer than the model's context.

    `configs` are those of the phases by number.
    """
    told = set()
    for number, config in configs.items():
        context = config.get("max_position_embeddings")
        own = any(phase.seq_len is not None for phase in recipe.phases[: number + 1])
        for field, length in (
            ("seq_len", recipe.seq_len),
            (f"phases.{number}.seq_len", recipe.seq_len_of(number)),
        ):
            if context and length > context and (field == "seq_len" or own) and length not in told:
                told.add(length)
                what = f"is above the model's max_position_embeddings {context}"
                what += f" ({recipe.model.base})" if recipe.model.base is not None else ""
                fix = "shorten seq_len, or extend the model's context first"
                if own:
                    fix = "shorten it, or give the phase a rope, such as {rope_theta: 1e6}"
                yield UserError(what, field=field, value=length, fix=fix)


def rope_type(config: Mapping[str, Any]) -> str | None:
    """Return the kind of RoPE of a config in either form; None if it says nothing."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    return None if kind is None else str(kind)


def with_both_forms(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config fields that transformers 4 and 5 read alike, and whatever else reads one of their forms.

    transformers 5 writes `rope_parameters` alone. Readers of the older form find neither theta nor scaling
    there, take 10,000 and no scaling, and say nothing; so the older fields stand beside it. What is there of
    either form is kept. The same holds for `dtype`, which was `torch_dtype`.
    """
    fields = dict(config)
    if isinstance(fields.get("dtype"), str):
        fields.setdefault("torch_dtype", fields["dtype"])
    parameters = fields.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return fields
    scaling = dict(parameters)
    theta, share = scaling.pop("rope_theta", None), scaling.pop("partial_rotary_factor", None)
    names = ("rotary_emb_base", "rotary_pct") if fields.get("model_type") == "gpt_neox" else (
        "rope_theta", "partial_rotary_factor"
    )  # fmt: skip
    for name, value in zip(names, (theta, share), strict=True):
        if value is not None:
            fields.setdefault(name, value)
    if scaling.get("rope_type", "default") != "default":
        fields.setdefault("rope_scaling", scaling)
    return fields
