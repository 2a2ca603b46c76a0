"""The fields of config.json that tell the rotary position embedding, for the readers of either form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
