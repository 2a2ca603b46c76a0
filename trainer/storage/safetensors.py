"""Read and write model directories in the safetensors format, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tokenization.errors import RewarmError, UserError
from trainer.storage import disk
from trainer.storage.hub import fetch_from_hub

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


GENERATION = "generation_config.json"


SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


MAX_SHARD_BYTES = 2 * 2**30


_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class WeightsReader:
    """The tensors of a directory of safetensors files, mapped, in the order of the files."""

    def __init__(self, directory: str | Path) -> None:
        """Opens every file of `directory`.

        Raises:
            UserError: no safetensors weights, a file of the index missing, or one that is damaged.
        """
        self.directory = Path(directory)
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in self._paths():
            try:
                opened = self._stack.enter_context(safe_open(path, framework="pt"))
            except Exception as error:  # safetensors raises its own type, OSError and others
                self._stack.close()
                raise UserError(f"cannot be read ({error})", file=path, fix="copy the model again") from error
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def _paths(self) -> list[Path]:
        index = self.directory / INDEX_FILE
        if not index.is_file():
            if not (self.directory / SINGLE_FILE).is_file():
                what = f"has neither {SINGLE_FILE} nor {INDEX_FILE}"
                fix = "convert its weights: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
                raise UserError(what, file=self.directory, fix=fix)
            return [self.directory / SINGLE_FILE]
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"cannot be read ({error})", file=index, fix="copy the model again") from error
        return [self.directory / name for name in names]

    @property
    def names(self) -> list[str]:
        """The tensors' names."""
        return list(self._files)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, without reading it."""
        shape: list[int] = self._files[name].get_slice(name).get_shape()
        return shape

    def dtype(self, name: str) -> torch.dtype:
        """The number format of a tensor, without reading it.

        Raises:
            UserError: it is one that torch's plain formats do not include, as of quantized weights.
        """
        told = self._files[name].get_slice(name).get_dtype()
        for dtype, known in _SAFETENSORS_NAMES.items():
            if known == told:
                return dtype
        raise UserError("has an unsupported number format", file=self.directory, field=name, value=told)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self[name]) for name in self._files)

    def __enter__(self) -> WeightsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Weight:
    """A tensor that is made only while it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Weight:
        """One that is there already."""
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class WeightsWriter:
    """Writes weights as safetensors shards of a bounded size, with the index that transformers reads.

    Each weight is made when its turn comes, so that one is in memory at a time, whatever a shard holds.
    """

    def __init__(self, directory: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.directory = Path(directory)
        self.max_shard_bytes = max_shard_bytes
        self._next: list[Weight] = []
        self._shards: list[list[str]] = []
        self.total_bytes = 0

    def add(self, weight: Weight) -> None:
        """Takes the next weight; a shard is written when this one would not fit into it.

        Raises:
            OSError: the disk is full or fails; so does `close`.
        """
        if self._next and sum(held.size for held in self._next) + weight.size > self.max_shard_bytes:
            self._flush()
        self._next.append(weight)
        self.total_bytes += weight.size

    def _flush(self) -> None:
        # The number of shards, a part of their names, is known only at the end.
        # Wide types come first, which keeps all of them aligned.
        weights = sorted(self._next, key=lambda weight: -weight.dtype.itemsize)
        path = self.directory / f"shard-{len(self._shards)}"
        disk.write_direct(path, chain([_header(weights)], map(_bytes, weights)))
        self._shards.append([weight.name for weight in self._next])
        self._next = []

    def close(self) -> None:
        """Writes the last shard, and the index if there is more than one."""
        self._flush()
        many = len(self._shards)
        weight_map = {}
        for number, names in enumerate(self._shards):
            final = SINGLE_FILE if many == 1 else f"model-{number + 1:05d}-of-{many:05d}.safetensors"
            (self.directory / f"shard-{number}").rename(self.directory / final)
            weight_map.update(dict.fromkeys(names, final))
        if many > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            (self.directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _header(weights: Sequence[Weight]) -> Tensor:
    """The beginning of a safetensors file of `weights`, as bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        begin, end = end, end + weight.size
        dtype = _SAFETENSORS_NAMES[weight.dtype]
        entries[weight.name] = {"dtype": dtype, "shape": weight.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)


def _bytes(weight: Weight) -> Tensor:
    made = weight.make().detach()
    if tuple(made.shape) != weight.shape or made.dtype != weight.dtype:
        raise AssertionError(f"{weight.name} is {made.dtype} {tuple(made.shape)}, not as it was announced")
    return made.contiguous().view(-1).view(torch.uint8)


def read_generation(model: str | Path) -> dict[str, Any] | None:
    """What a model's directory or hub id says of how to generate; None where it says nothing.

    Raises:
        UserError: the file is damaged.
    """
    directory = Path(model)
    with suppress(RewarmError):
        directory = directory if directory.exists() else fetch_from_hub(model, [GENERATION], None)
    path = directory / GENERATION
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", file=path, fix="copy the model again") from error
    if not isinstance(read, dict):
        raise UserError("is not a mapping of settings", file=path, fix="copy the model again")
    return read
