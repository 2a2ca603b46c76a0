"""A Hugging Face model directory: weights a tensor at a time, tokenizer files; whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tokenization.shard_format import sync
from trainer import disk
from trainer.errors import InfrastructureError, RewarmError, UserError

GENERATION = "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "extension.json",
)
"""All that a tokenizer directory may consist of."""

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
                raise UserError(
                    f"cannot be read ({error})", file=path, mend="copy the model again"
                ) from error
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def _paths(self) -> list[Path]:
        index = self.directory / INDEX
        if not index.is_file():
            if not (self.directory / SINGLE).is_file():
                what = f"has neither {SINGLE} nor {INDEX}"
                mend = "convert its weights: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
                raise UserError(what, file=self.directory, mend=mend)
            return [self.directory / SINGLE]
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"cannot be read ({error})", file=index, mend="copy the model again") from error
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
        disk.write(path, chain([_header(weights)], map(_bytes, weights)))
        self._shards.append([weight.name for weight in self._next])
        self._next = []

    def close(self) -> None:
        """Writes the last shard, and the index if there is more than one."""
        self._flush()
        many = len(self._shards)
        weight_map = {}
        for number, names in enumerate(self._shards):
            final = SINGLE if many == 1 else f"model-{number + 1:05d}-of-{many:05d}.safetensors"
            (self.directory / f"shard-{number}").rename(self.directory / final)
            weight_map.update(dict.fromkeys(names, final))
        if many > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            (self.directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


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


def local(model: str | Path, field: str) -> Path:
    """The directory of a model: itself, or where the whole of a hub id has been fetched to.

    Raises:
        UserError, InfrastructureError: as `fetch`.
    """
    if Path(model).is_dir():
        return Path(model)
    return fetch(model, ["*.json", "*.safetensors", "*.model"], field)


def fetch(model: str | Path, files: list[str], field: str | None) -> Path:
    """The directory to which `files` (patterns) of a hub id have been fetched, or lay already.

    Raises:
        UserError: `model` is a path and lacks them, or the hub does not have it.
        InfrastructureError: the hub cannot be reached.
    """
    name = str(model)
    if Path(name).exists():
        mend = "give a directory with config.json and the weights, such as `rewarm export` writes"
        raise UserError("is no model directory: it has no config.json", field=field, value=name, mend=mend)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        mend = "give a model directory or a hub id, org/name"
        raise UserError("does not exist", field=field, value=name, mend=mend)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except LocalEntryNotFoundError as error:
        what = f"{field}: {name!r} is no directory here, and the hub cannot be reached to fetch it"
        raise InfrastructureError(what) from error
    except (HfHubHTTPError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"is no directory here and not on the hub ({reason})", field=field, value=name
        ) from error


def write_config(
    config: Mapping[str, Any], directory: str | Path, generation: Mapping[str, Any] | None = None
) -> None:
    """Writes and syncs config.json, by which transformers knows a model, and generation_config.json if given.

    Raises:
        OSError: the disk is full or fails.
    """
    for name, content in (("config.json", config), (GENERATION, generation)):
        if content is not None:
            path = Path(directory) / name
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            sync(path)


def read_generation(model: str | Path) -> dict[str, Any] | None:
    """What a model's directory or hub id says of how to generate; None where it says nothing.

    Raises:
        UserError: the file is damaged.
    """
    directory = Path(model)
    with suppress(RewarmError):
        directory = directory if directory.exists() else fetch(model, [GENERATION], None)
    path = directory / GENERATION
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", file=path, mend="copy the model again") from error
    if not isinstance(read, dict):
        raise UserError("is not a mapping of settings", file=path, mend="copy the model again")
    return read


def copy_tokenizer(tokenizer: str | Path, directory: str | Path) -> None:
    """Copies the files of a tokenizer (a directory, or a single `.model` file) byte for byte.

    Raises:
        UserError: there are none.
    """
    source = Path(tokenizer)
    if source.is_file():
        found = {source: "tokenizer.json" if source.suffix == ".json" else "tokenizer.model"}
    else:
        found = {source / name: name for name in TOKENIZER_FILES if (source / name).is_file()}
    if not found:
        mend = "give a tokenizer directory or a SentencePiece .model file"
        raise UserError("holds no tokenizer", field="tokenizer", value=str(tokenizer), mend=mend)
    for path, name in found.items():
        shutil.copyfile(path, Path(directory) / name)
