"""Copy fragments to host memory while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from trainer.checkpoint.rank_files import bytes_of, tensor_entries
from trainer.storage import disk
from trainer.storage.fragment import Fragment


def snapshot(
    fragments: Sequence[Fragment], arena: disk.PinnedBuffer, ready: Callable[[], None]
) -> list[Fragment]:
    """Copies in the host memory of `arena`; when this returns, the live tensors may change.

    May run in another thread than the one that computes, which called `moment` for `ready`.
    """
    entries = tensor_entries(fragments)
    room = arena.room(sum(bytes_of(tensor) for _, tensor in entries))
    copies: dict[str, torch.Tensor] = {}
    end = 0
    for key, tensor in entries:
        begin, end = end, end + bytes_of(tensor)
        copies[key] = room[begin:end].view(tensor.dtype)
    with _own_stream(entries):
        ready()
        for key, tensor in entries:
            copies[key].copy_(tensor.detach(), non_blocking=True)
    return [replace(f, tensors={kind: copies[f"{kind}:{f.name}"] for kind in f.tensors}) for f in fragments]


def use_same_gpu() -> Callable[[], None]:
    """Another thread that calls the answer works on this thread's GPU; by itself it would take the first."""
    if not torch.cuda.is_available():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def record_event() -> Callable[[], None]:
    """Now: another thread that calls the answer reads what was computed until now."""
    if not torch.cuda.is_available():
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.wait


@contextmanager
def _own_stream(entries: Iterable[tuple[str, torch.Tensor]]) -> Iterator[None]:
    """Copies inside it go beside what the device computes, and are done at its end."""
    device = next((tensor.device for _, tensor in entries if tensor.is_cuda), None)
    if device is None:
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
        torch.cuda.current_stream().synchronize()
