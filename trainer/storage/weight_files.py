"""The weight files of a model directory: which they are, and what their headers say; torch is not needed."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tokenization.errors import UserError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


def weight_paths(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory.

    Raises:
        UserError: there are none, or the index of several is damaged.
    """
    index = directory / INDEX_FILE
    if not index.is_file():
        if not (directory / SINGLE_FILE).is_file():
            what = f"has neither {SINGLE_FILE} nor {INDEX_FILE}"
            fix = "convert its weights: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
            raise UserError(what, file=directory, fix=fix)
        return [directory / SINGLE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"cannot be read ({error})", file=index, fix="copy the model again") from error
    if outside := [name for name in names if Path(str(name)).name != name]:
        raise UserError("names a file outside of the model", file=index, value=outside[0])
    return [directory / name for name in names]


def open_weights(path: Path, framework: str) -> AbstractContextManager[Any]:
    """Open a safetensors file, memory-mapped; its tensors are those of `framework`.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        opened: AbstractContextManager[Any] = safe_open(path, framework=framework)
    except Exception as error:  # safetensors raises its own type, OSError and others
        raise UserError(f"cannot be read ({error})", file=path, fix="copy the model again") from error
    return opened


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model directory, from the headers of its files.

    Raises:
        UserError: there are no weights, a file of the index is missing, or one is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_paths(directory):
        with open_weights(path, "np") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes
