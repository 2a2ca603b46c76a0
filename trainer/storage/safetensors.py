"""The safetensors format: its number formats, its header, and model directories read and written in it."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenization.errors import UserError
from trainer.storage import disk
from trainer.storage.weight_files import INDEX_FILE, SINGLE_FILE, open_weights, weight_paths

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by the names that recipes and commands use."""

MAX_SHARD_BYTES = 2 * 2**30

_FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number formats by the names that safetensors uses."""

_FORMAT_NAMES = {dtype: name for name, dtype in _FORMATS.items()}


def encode_header(
    tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> Tensor:
    """Make the bytes before the data of a safetensors file, for (name, dtype, shape) in the data's order."""
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _FORMAT_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)


def decode_file(mapped: mmap.mmap) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata of a mapped safetensors file, and its tensors, flat, as views of the file."""
    length = int.from_bytes(mapped[:8], "little")
    entries = json.loads(mapped[8 : 8 + length])
    data = torch.frombuffer(mapped, dtype=torch.uint8)[8 + length :]
    metadata = entries.pop("__metadata__", {})
    places = {name: (entry["data_offsets"], _FORMATS[entry["dtype"]]) for name, entry in entries.items()}
    return metadata, {name: data[begin:end].view(dtype) for name, ((begin, end), dtype) in places.items()}


class WeightsReader:
    """The tensors of a directory of safetensors files, memory-mapped, in the order of the files."""

    def __init__(self, directory: str | Path) -> None:
        """Open every file of `directory`.

        Raises:
            UserError: no safetensors weights, a file of the index missing, or one that is damaged.
        """
        self.directory = Path(directory)
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in weight_paths(self.directory):
            try:
                opened = self._stack.enter_context(open_weights(path, "pt"))
            except UserError:
                self._stack.close()
                raise
            self._files.update(dict.fromkeys(opened.keys(), opened))

    @property
    def names(self) -> list[str]:
        """The tensors' names."""
        return list(self._files)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor, without reading it."""
        shape: list[int] = self._files[name].get_slice(name).get_shape()
        return shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the number format of a tensor, without reading it.

        Raises:
            UserError: torch has no plain format for it, as for quantized weights.
        """
        named = self._files[name].get_slice(name).get_dtype()
        if named not in _FORMATS:
            raise UserError("has an unsupported number format", file=self.directory, field=name, value=named)
        return _FORMATS[named]

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
    """A tensor that is made only when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Weight:
        """Wrap a tensor that exists already."""
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class WeightsWriter:
    """Writer of safetensors shards of bounded size, with the index that transformers reads.

    Each weight is made just before it is written, so that only one is in memory at a time.
    """

    def __init__(self, directory: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.directory = Path(directory)
        self.max_shard_bytes = max_shard_bytes
        self._next: list[Weight] = []
        self._shards: list[list[str]] = []
        self.total_bytes = 0

    def add(self, weight: Weight) -> None:
        """Add the next weight; the shard before it is written if this weight does not fit into it.

        Raises:
            OSError: the disk is full or fails; so does `close`.
        """
        if self._next and sum(held.size for held in self._next) + weight.size > self.max_shard_bytes:
            self._flush()
        self._next.append(weight)
        self.total_bytes += weight.size

    def _flush(self) -> None:
        # The number of shards, which is a part of their names, is known only at the end.
        # Wide types come first, so that all tensors are aligned.
        weights = sorted(self._next, key=lambda weight: -weight.dtype.itemsize)
        path = self.directory / f"shard-{len(self._shards)}"
        header = encode_header(((one.name, one.dtype, one.shape) for one in weights), {"format": "pt"})
        disk.write_direct(path, chain([header], map(_bytes, weights)))
        self._shards.append([weight.name for weight in self._next])
        self._next = []

    def close(self) -> None:
        """Write the last shard, and the index if there is more than one shard."""
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


def _bytes(weight: Weight) -> Tensor:
    made = weight.make().detach()
    if tuple(made.shape) != weight.shape or made.dtype != weight.dtype:
        raise AssertionError(
            f"{weight.name} is {made.dtype} {tuple(made.shape)}, not {weight.dtype} {weight.shape}"
        )
    return made.contiguous().view(-1).view(torch.uint8)
