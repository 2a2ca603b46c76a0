"""Take a base's weights at the precision of its own files, where the model computes in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokenization.errors import RewarmError
from trainer.engine.engine import Engine
from trainer.model.architecture import file_name
from trainer.model.loss import plain_name
from trainer.storage.fragment import Fragment
from trainer.storage.hub import local_directory
from trainer.storage.safetensors import WeightsReader


def load_exact_base(
    engine: Engine, base: str | Path, config: Mapping[str, Any], dtype: torch.dtype
) -> list[str]:
    """Make the fp32 weights of an engine, which was built from `base`, from the values in the base's files.

    DeepSpeed makes them from the computing weights, and those are already rounded to `dtype`. Every rank
    calls it. A weight whose value in the file does not round to that of the engine is left as it is.
    Returns a line if some weights start rounded.
    """
    try:
        reader = WeightsReader(local_directory(base, "model.base"))
    except RewarmError as error:
        return [f"model.base: {str(base)!r}: weights start rounded to model.dtype; in their files, {error}"]
    with reader:
        if all(reader.dtype(name) == dtype for name in reader.names):
            return []
        known = set(reader.names)
        rounded = []
        for fragment in engine.fragments(change=True):
            name = file_name(config["model_type"], plain_name(fragment.name))
            same = name in known and tuple(reader.shape(name)) == fragment.shape
            if not (same and _fill(fragment, reader[name], dtype)):
                rounded.append(name)
    engine.restore(0, {})
    if not rounded:
        return []
    what = f"{len(rounded)} weights start rounded to model.dtype, among them {rounded[0]}"
    return [f"model.base: {str(base)!r}: {what}; its files hold no value of them that rounds to it"]


def _fill(fragment: Fragment, value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Overwrite a fragment's weight by its part of `value`, if that rounds to it; tell whether it does."""
    weight = fragment.tensors["weight"]
    own = value.view(-1).narrow(0, fragment.start, weight.numel()).to(weight.device, torch.float32)
    if not torch.equal(own.to(dtype), weight.to(dtype)):
        return False
    weight.copy_(own)
    return True
