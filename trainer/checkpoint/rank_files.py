"""A rank's share of the run's state as a safetensors file that any topology can read.

A file holds fragments: stretches of flattened parameters, with their fp32 weights and optimizer
moments, and says where in its parameter each one lies. Whoever loads takes from all files the
elements that its own fragments want; with an unchanged topology those are in one file, otherwise
in several. So there is one form, written directly, and no conversion.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tokenization.errors import InfrastructureError
from trainer.storage import disk
from trainer.storage.fragment import Fragment
from trainer.storage.safetensors import Weight

_MAPPING = mmap.MAP_PRIVATE | 0x4000
"""MAP_NORESERVE, which has no name in Python 3.11: writable, as torch wants its memory, but nothing is
reserved for copies that are never made, or a file larger than the memory could not be opened."""


_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class RankFile:
    """What one rank wrote: proof for the manifest."""

    file: str
    size: int
    checksum: str
    weights: dict[str, int]
    """Per parameter the `position_checksum` of this file's share; shares add up modulo 2**64."""
    elements: dict[str, tuple[int, int]]
    """Per parameter, how many elements this file holds of how many."""


@dataclass(frozen=True)
class SavedPiece:
    """A saved fragment, memory-mapped."""

    start: int
    shape: tuple[int, ...]
    tensors: dict[str, torch.Tensor]


def tensor_entries(fragments: Iterable[Fragment]) -> list[tuple[str, torch.Tensor]]:
    """The tensors by key: weights in one stretch, for whoever wants only them.

    Wide types come first, which keeps all of them aligned one after another.
    """
    entries = [(f"{kind}:{f.name}", tensor) for f in fragments for kind, tensor in f.tensors.items()]
    return sorted(entries, key=lambda entry: (-entry[1].element_size(), not entry[0].startswith("weight:")))


def bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def write_rank_file(path: Path, fragments: Sequence[Fragment]) -> RankFile:
    """Writes and syncs one rank's file (safetensors; keys `kind:parameter`).

    Raises:
        OSError: the disk is full or fails.
    """
    entries = tensor_entries(fragments)
    header: dict[str, object] = {
        "__metadata__": {"places": json.dumps({f.name: [f.start, *f.shape] for f in fragments})}
    }
    end = 0
    for key, tensor in entries:
        begin, end = end, end + bytes_of(tensor)
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": [tensor.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)
    data = (tensor.detach().contiguous().view(torch.uint8) for _, tensor in entries)
    with ThreadPoolExecutor(1, thread_name_prefix="checksum") as pool:
        weights = pool.submit(weight_checksums, fragments)
        size, proof = disk.write_direct(path, itertools.chain([head], data))
        return RankFile(path.name, size, proof, weights.result(), _elements(fragments))


def _elements(fragments: Iterable[Fragment]) -> dict[str, tuple[int, int]]:
    return {f.name: (f.tensors["weight"].numel(), math.prod(f.shape)) for f in fragments}


def missing_elements(shares: Iterable[RankFile]) -> list[str]:
    """Parameters that the files together do not hold exactly once: a defect, found before the commit."""
    held: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for share in shares:
        for name, (count, whole) in share.elements.items():
            held[name] = held.get(name, 0) + count
            wanted[name] = whole
    return [f"{name}: {held[name]} of {wanted[name]} elements" for name in held if held[name] != wanted[name]]


def position_checksum(start: int, weight: torch.Tensor) -> int:
    """Sum over elements of (fp32 bits * (2 * position + 1)) modulo 2**64.

    Shares of a parameter add up to the whole parameter's, however it is cut.
    """
    size = 1 << (17 if weight.device.type == "cpu" else 24)  # what the host's cache holds; few launches
    odd = torch.arange(1, 2 * size, 2, dtype=torch.int64, device=weight.device)
    scratch = torch.empty(size, dtype=torch.int64, device=weight.device)
    total = 0
    for begin in range(0, weight.numel(), size):
        bits = weight[begin : begin + size].detach().float().contiguous().view(torch.int32)
        wide = scratch[: bits.numel()].copy_(bits)
        # 2 * (start + begin + i) + 1 = 2 * (start + begin) + (2 * i + 1), and the latter is `odd` everywhere.
        total += 2 * (start + begin) * int(wide.sum())
        total += int(wide.mul_(odd[: bits.numel()]).sum())
    return total % 2**64


def weight_checksums(fragments: Iterable[Fragment]) -> dict[str, int]:
    """Per parameter, the `position_checksum` of these fragments' weights."""
    return {f.name: position_checksum(f.start, f.tensors["weight"]) for f in fragments}


def add_checksums(shares: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Whole parameters' checksums from the ranks' shares."""
    total: dict[str, int] = {}
    for share in shares:
        for name, value in share.items():
            total[name] = (total.get(name, 0) + value) % 2**64
    return total


class Reader:
    """The files of a checkpoint, memory-mapped, as one collection of parameters."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers only."""
        self.pieces: dict[str, list[SavedPiece]] = {}
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, flags=_MAPPING, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        length = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + length])
        data = torch.frombuffer(mapped, dtype=torch.uint8)[8 + length :]
        for name, (start, *shape) in json.loads(header.pop("__metadata__")["places"]).items():
            self.pieces.setdefault(name, []).append(SavedPiece(start, tuple(shape), {}))
        for key, entry in header.items():
            kind, name = key.split(":", 1)
            begin, end = entry["data_offsets"]
            self.pieces[name][-1].tensors[kind] = data[begin:end].view(_DTYPES[entry["dtype"]])

    def fill(self, fragment: Fragment, kinds: Iterable[str]) -> None:
        """Copies the saved elements of `fragment` into its live tensors.

        Moments that were not saved (the parameter was frozen then) become zero, as they start.

        Raises:
            InfrastructureError: the parameter is missing, has another shape, or has holes.
        """
        pieces = self.pieces.get(fragment.name, [])
        if not pieces or pieces[0].shape != tuple(fragment.shape):
            saved = pieces[0].shape if pieces else "nothing"
            raise InfrastructureError(
                f"checkpoint: {fragment.name} has shape {tuple(fragment.shape)}, saved was {saved}"
            )
        for kind in kinds:
            if (target := fragment.tensors.get(kind)) is None:
                continue
            covered = 0
            for piece in pieces:
                if kind in piece.tensors:
                    covered += _overlap(target, fragment.start, piece.tensors[kind], piece.start)
            if covered == 0 and kind != "weight":
                target.zero_()
            elif covered != target.numel():
                raise InfrastructureError(
                    f"checkpoint: {kind} of {fragment.name} has {covered} of {target.numel()} elements"
                )

    def weights(self) -> Iterator[Weight]:
        """Every parameter's weight, to be put together when it is needed."""
        for name, (first, *_) in self.pieces.items():
            yield Weight(name, first.shape, first.tensors["weight"].dtype, partial(self.whole, name))

    def whole(self, name: str, kind: str = "weight") -> torch.Tensor:
        """A whole parameter in its shape, put together from all files."""
        pieces = self.pieces[name]
        shape = pieces[0].shape
        count = int(np.prod(shape)) if shape else 1
        first = pieces[0].tensors[kind]
        if len(pieces) == 1 and first.numel() == count:
            return first.view(shape)
        whole = torch.empty(count, dtype=first.dtype)
        for piece in pieces:
            _overlap(whole, 0, piece.tensors[kind], piece.start)
        return whole.view(shape)


def _overlap(target: torch.Tensor, start: int, saved: torch.Tensor, saved_start: int) -> int:
    """Copies the elements that both stretches of the parameter hold; their number."""
    begin = max(start, saved_start)
    count = min(start + target.numel(), saved_start + saved.numel()) - begin
    if count <= 0:
        return 0
    target.narrow(0, begin - start, count).copy_(saved.narrow(0, begin - saved_start, count))
    return count
