"""Take a base's weights at the precision of its own files, where the model computes in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tokenization.errors import RewarmError, UserError
from trainer.checkpoint import rank_files
from trainer.checkpoint.manifest import MARKER, read_checkpoint
from trainer.engine.engine import Engine
from trainer.model.architecture import file_name
from trainer.model.loss import plain_name
from trainer.storage.fragment import AVERAGE, Fragment
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


def pull_to_base(engine: Engine, base: str | Path, config: Mapping[str, Any], share: float) -> None:
    """Move the trained weights, and their averages, by a share of the way to those of the base.

    The optimizer's moments stay. Every rank calls it.

    Raises:
        UserError: the base cannot be read, or lacks a weight of this name and shape.
    """
    place = Path(base)
    if (place / MARKER).is_file():
        saved = rank_files.Reader(read_checkpoint(place).files)
        _pull(
            engine,
            {name: (one[0].shape, partial(saved.whole, name)) for name, one in saved.pieces.items()},
            share,
        )
        return
    with WeightsReader(local_directory(base, "model.base")) as reader:
        names = {plain: file_name(config["model_type"], plain_name(plain)) for plain in engine.shapes}
        known = set(reader.names)
        found = {
            plain: (tuple(reader.shape(name)), partial(reader.__getitem__, name))
            for plain, name in names.items()
            if name in known
        }
        _pull(engine, found, share)


def _pull(
    engine: Engine, weights: Mapping[str, tuple[tuple[int, ...], Callable[[], torch.Tensor]]], share: float
) -> None:
    """Move every trained fragment towards the weight of its name, which is made when it is needed."""
    engine.before_update()
    for fragment in engine.fragments(change=True):
        if not fragment.trained:
            continue
        shape, make = weights.get(fragment.name, ((), None))
        if make is None or tuple(shape) != fragment.shape:
            what = (
                f"has {fragment.name} not with shape {list(fragment.shape)}, so nothing can be pulled to it"
            )
            raise UserError(what, field="model.base", fix="set on_failure: lower_lr")
        for kind in ("weight", AVERAGE):
            if (target := fragment.tensors.get(kind)) is not None:
                own = make().reshape(-1).narrow(0, fragment.start, target.numel())
                target.lerp_(own.to(target.device, torch.float32), share)
    engine.refresh()


def _fill(fragment: Fragment, value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Overwrite a fragment's weight by its part of `value`, if that rounds to it; tell whether it does."""
    weight = fragment.tensors["weight"]
    own = value.view(-1).narrow(0, fragment.start, weight.numel()).to(weight.device, torch.float32)
    if not torch.equal(own.to(dtype), weight.to(dtype)):
        return False
    weight.copy_(own)
    return True
