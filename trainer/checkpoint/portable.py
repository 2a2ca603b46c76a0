"""A rank's share of the run's state as a safetensors file that any topology can read.

A file holds fragments: stretches of flattened parameters, with their fp32 weights and optimizer
moments, and says where in its parameter each one lies. Whoever loads takes from all files the
elements that its own fragments want; with an unchanged topology those are in one file, otherwise
in several. So there is one form, written directly, and no conversion.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import xxhash

from trainer.errors import InfrastructureError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK = 1 << 24


class Fragment(Protocol):
    """A stretch of a flattened parameter, as the engine gives it."""

    name: str
    start: int
    shape: tuple[int, ...]
    trained: bool
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Written:
    """What one rank wrote: proof for the manifest."""

    file: str
    size: int
    checksum: str
    weights: dict[str, int]
    """Per parameter the `position_checksum` of this file's share; shares add up modulo 2**64."""


@dataclass(frozen=True)
class Piece:
    """A saved fragment, memory-mapped."""

    start: int
    shape: tuple[int, ...]
    tensors: dict[str, torch.Tensor]


def snapshot(fragments: Iterable[Fragment]) -> list[Fragment]:
    """Copies in host memory, so that training may go on while they are written."""
    copies: list[Fragment] = []
    for fragment in fragments:
        tensors = {kind: tensor.detach().to("cpu", copy=True) for kind, tensor in fragment.tensors.items()}
        copies.append(_Copy(fragment.name, fragment.start, tuple(fragment.shape), fragment.trained, tensors))
    return copies


@dataclass
class _Copy:
    name: str
    start: int
    shape: tuple[int, ...]
    trained: bool
    tensors: dict[str, torch.Tensor]


def write(path: Path, fragments: Sequence[Fragment]) -> Written:
    """Writes and syncs one rank's file (safetensors; keys `kind:parameter`).

    Raises:
        OSError: the disk is full or fails.
    """
    entries = [
        (f"{kind}:{fragment.name}", tensor.detach())
        for fragment in fragments
        for kind, tensor in fragment.tensors.items()
    ]
    entries.sort(key=lambda entry: -entry[1].element_size())  # wide types first keep all of them aligned
    header: dict[str, object] = {
        "__metadata__": {"places": json.dumps({f.name: [f.start, *f.shape] for f in fragments})}
    }
    end = 0
    for key, tensor in entries:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": [tensor.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    hasher = xxhash.xxh3_128()
    with open(path, "wb") as out:
        for part in (len(text).to_bytes(8, "little"), text):
            hasher.update(part)
            out.write(part)
        for _, tensor in entries:
            data = tensor.cpu().contiguous().view(torch.uint8).numpy().data
            for begin in range(0, len(data), _CHUNK):
                hasher.update(data[begin : begin + _CHUNK])
                out.write(data[begin : begin + _CHUNK])
        out.flush()
        os.fsync(out.fileno())
    return Written(path.name, 8 + len(text) + end, hasher.hexdigest(), weight_checksums(fragments))


def checksum(path: Path) -> str:
    """xxh3-128 of a file."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def position_checksum(start: int, weight: torch.Tensor) -> int:
    """Sum over elements of (fp32 bits * (2 * position + 1)) modulo 2**64.

    Shares of a parameter add up to the whole parameter's, however it is cut.
    """
    total = 0
    for begin in range(0, weight.numel(), _CHUNK):
        bits = weight[begin : begin + _CHUNK].detach().float().contiguous().view(torch.int32).to(torch.int64)
        first = 2 * (start + begin) + 1
        odd = torch.arange(first, first + 2 * bits.numel(), 2, dtype=torch.int64, device=bits.device)
        total += int((bits * odd).sum())
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
        self.pieces: dict[str, list[Piece]] = {}
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        mapped = np.memmap(path, dtype=np.uint8, mode="c")
        length = int.from_bytes(mapped[:8].tobytes(), "little")
        header = json.loads(mapped[8 : 8 + length].tobytes())
        data = torch.from_numpy(mapped)[8 + length :]
        for name, (start, *shape) in json.loads(header.pop("__metadata__")["places"]).items():
            self.pieces.setdefault(name, []).append(Piece(start, tuple(shape), {}))
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
