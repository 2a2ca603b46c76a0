"""Copy fragments to host memory while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from trainer.checkpoint.rank_files import tensor_entries
from trainer.storage import disk
from trainer.storage.fragment import Fragment


def snapshot(
    fragments: Sequence[Fragment], buffer: disk.PinnedBuffer, ready: Callable[[], None]
) -> list[Fragment]:
    """Copy fragments to the memory of `buffer`; when this returns, the live tensors may change.

    May run in another thread than the one that computes, which called `record_event` for `ready`.
    """
    entries = tensor_entries(fragments)
    memory = buffer.reserve(sum(tensor.nbytes for _, tensor in entries))
    copies: dict[str, torch.Tensor] = {}
    end = 0
    for key, tensor in entries:
        begin, end = end, end + tensor.nbytes
        copies[key] = memory[begin:end].view(tensor.dtype)
    with _own_stream(entries):
        ready()
        for key, tensor in entries:
            copies[key].copy_(tensor.detach(), non_blocking=True)
    return [replace(f, tensors={kind: copies[f"{kind}:{f.name}"] for kind in f.tensors}) for f in fragments]


def use_same_gpu() -> Callable[[], None]:
    """Return a function that makes the thread that calls it use this thread's GPU, not the first one."""
    if not torch.cuda.is_available():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def record_event() -> Callable[[], None]:
    """Record a CUDA event; the returned function makes another thread's stream wait for it."""
    if not torch.cuda.is_available():
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.wait


@contextmanager
def _own_stream(entries: Iterable[tuple[str, torch.Tensor]]) -> Iterator[None]:
    """Run the copies inside on a CUDA stream of their own, and wait for them at the end."""
    device = next((tensor.device for _, tensor in entries if tensor.is_cuda), None)
    if device is None:
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
        torch.cuda.current_stream().synchronize()
