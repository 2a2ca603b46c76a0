"""A rank's part of the run's state as a safetensors file that any topology can read.

A file holds fragments: ranges of flattened parameters, with their fp32 weights and optimizer moments,
and the place of each one in its parameter. A rank that loads takes the elements of its own fragments
from all files: with the same topology they are in one file, otherwise in several. So there is one
format, which is written directly, and no conversion.
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

import torch

from tokenization.errors import InfrastructureError, UserError
from trainer.storage import disk
from trainer.storage.fragment import AVERAGE, Fragment
from trainer.storage.safetensors import Weight, decode_file, encode_header

_MAPPING = mmap.MAP_PRIVATE | 0x4000
"""With MAP_NORESERVE, which has no name in Python 3.11. torch needs writable memory; without the flag the
system would reserve memory for copies that are never made, and refuse a file larger than the memory."""


@dataclass(frozen=True)
class RankFile:
    """One written file of a rank, as the manifest records it."""

    file: str
    size: int
    checksum: str
    weights: dict[str, int]
    """Per parameter the `position_checksum` of this file's part; the parts add up modulo 2**64."""
    elements: dict[str, tuple[int, int]]
    """Per parameter: elements in this file, elements of the whole parameter."""
    not_finite: tuple[str, ...] = ()
    """Parameters of which a weight in this file is NaN or infinite."""


@dataclass(frozen=True)
class SavedPiece:
    """A saved fragment, memory-mapped."""

    start: int
    shape: tuple[int, ...]
    tensors: dict[str, torch.Tensor]


def tensor_entries(fragments: Iterable[Fragment]) -> list[tuple[str, torch.Tensor]]:
    """List the tensors by key: the weights together, for readers that need only them.

    Wide types come first, so that all tensors are aligned.
    """
    entries = [(f"{kind}:{f.name}", tensor) for f in fragments for kind, tensor in f.tensors.items()]
    return sorted(entries, key=lambda entry: (-entry[1].element_size(), not entry[0].startswith("weight:")))


def write_rank_file(path: Path, fragments: Sequence[Fragment]) -> RankFile:
    """Write and sync a file with these fragments (safetensors; keys `kind:parameter`).

    Raises:
        OSError: the disk is full or fails.
    """
    entries = tensor_entries(fragments)
    places = json.dumps({f.name: [f.start, *f.shape] for f in fragments})
    header = encode_header(((key, one.dtype, [one.numel()]) for key, one in entries), {"places": places})
    data = (tensor.detach().contiguous().view(torch.uint8) for _, tensor in entries)
    with ThreadPoolExecutor(1, thread_name_prefix="checksum") as pool:
        weights = pool.submit(weight_checksums, fragments)
        size, checksum = disk.write_direct(path, itertools.chain([header], data))
        bad = tuple(f.name for f in fragments if not is_finite(f.tensors["weight"]))
        return RankFile(path.name, size, checksum, weights.result(), _elements(fragments), bad)


def _elements(fragments: Iterable[Fragment]) -> dict[str, tuple[int, int]]:
    return {f.name: (f.tensors["weight"].numel(), math.prod(f.shape)) for f in fragments}


def missing_elements(files: Iterable[RankFile]) -> list[str]:
    """List the parameters that the files together do not hold exactly once, which is a bug."""
    held: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for file in files:
        for name, (count, size) in file.elements.items():
            held[name] = held.get(name, 0) + count
            sizes[name] = size
    return [f"{name}: {held[name]} of {sizes[name]} elements" for name in held if held[name] != sizes[name]]


def position_checksum(start: int, weight: torch.Tensor) -> int:
    """Return the sum over elements of (fp32 bits * (2 * position + 1)) modulo 2**64.

    The sums of a parameter's parts add up to that of the whole parameter, however it is cut.
    """
    # The host's cache holds 2**17 elements; a GPU needs few launches.
    size = 1 << (17 if weight.device.type == "cpu" else 24)
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


def is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether all elements are numbers. The sum of fp32 numbers is finite in fp64, and needs no copy."""
    return math.isfinite(float(tensor.detach().sum(dtype=torch.float64)))


def weight_checksums(fragments: Iterable[Fragment]) -> dict[str, int]:
    """Return the `position_checksum` of these fragments' weights, per parameter."""
    return {f.name: position_checksum(f.start, f.tensors["weight"]) for f in fragments}


def add_checksums(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add the checksums of the ranks' parts to those of whole parameters."""
    total: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = (total.get(name, 0) + value) % 2**64
    return total


class Reader:
    """The files of a checkpoint, memory-mapped, as one collection of parameters."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read only the headers.

        Raises:
            UserError: a file is damaged.
        """
        self.pieces: dict[str, list[SavedPiece]] = {}
        for path in paths:
            try:
                self._open(path)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise UserError(f"is not a rank's file ({reason})", file=path) from error

    def _open(self, path: Path) -> None:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, flags=_MAPPING, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        metadata, tensors = decode_file(mapped)
        for name, (start, *shape) in json.loads(metadata["places"]).items():
            self.pieces.setdefault(name, []).append(SavedPiece(start, tuple(shape), {}))
        for key, tensor in tensors.items():
            kind, name = key.split(":", 1)
            self.pieces[name][-1].tensors[kind] = tensor

    def fill(self, fragment: Fragment, kinds: Iterable[str]) -> None:
        """Copy the saved elements of `fragment` into its live tensors.

        Moments that were not saved, because the parameter was frozen, become zero, as in a fresh optimizer.
        An average that was not begins with the weight, which stands before it in `kinds`.

        Raises:
            InfrastructureError: the parameter is missing, has another shape, or lacks elements.
        """
        pieces = self.pieces.get(fragment.name, [])
        if not pieces or pieces[0].shape != tuple(fragment.shape):
            saved = pieces[0].shape if pieces else "nothing"
            raise InfrastructureError(
                f"checkpoint: {fragment.name} has shape {tuple(fragment.shape)}, and {saved} was saved"
            )
        for kind in kinds:
            if (target := fragment.tensors.get(kind)) is None:
                continue
            covered = 0
            for piece in pieces:
                if kind in piece.tensors:
                    covered += _overlap(target, fragment.start, piece.tensors[kind], piece.start)
            if covered == 0 and kind == AVERAGE:
                target.copy_(fragment.tensors["weight"])
            elif covered == 0 and kind != "weight":
                target.zero_()
            elif covered != target.numel():
                raise InfrastructureError(
                    f"checkpoint: {kind} of {fragment.name} has {covered} of {target.numel()} elements"
                )

    def weights(self, average: bool = False) -> Iterator[Weight]:
        """Yield every parameter's weight, which is put together when it is needed.

        With `average` it is the averaged one, where the parameter was trained.
        """
        for name, (first, *_) in self.pieces.items():
            kind = AVERAGE if average and AVERAGE in first.tensors else "weight"
            yield Weight(name, first.shape, first.tensors[kind].dtype, partial(self.whole, name, kind))

    @property
    def has_average(self) -> bool:
        """Whether averaged weights were saved."""
        return any(AVERAGE in piece.tensors for pieces in self.pieces.values() for piece in pieces)

    def whole(self, name: str, kind: str = "weight") -> torch.Tensor:
        """Return a whole parameter in its shape, put together from all files."""
        pieces = self.pieces[name]
        shape = pieces[0].shape
        count = math.prod(shape)
        if (held := sum(one.tensors[kind].numel() for one in pieces if kind in one.tensors)) != count:
            raise UserError(f"the checkpoint holds {held:,} of the {count:,} elements of {kind} of {name}")
        first = pieces[0].tensors[kind]
        if len(pieces) == 1 and first.numel() == count:
            return first.view(shape)
        whole = torch.empty(count, dtype=first.dtype)
        for piece in pieces:
            _overlap(whole, 0, piece.tensors[kind], piece.start)
        return whole.view(shape)


def _overlap(target: torch.Tensor, start: int, saved: torch.Tensor, saved_start: int) -> int:
    """Copy the elements that both ranges of the parameter hold, and return their number."""
    begin = max(start, saved_start)
    count = min(start + target.numel(), saved_start + saved.numel()) - begin
    if count <= 0:
        return 0
    target.narrow(0, begin - start, count).copy_(saved.narrow(0, begin - saved_start, count))
    return count
