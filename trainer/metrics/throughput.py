"""Throughput: tokens per second, MFU, time spent waiting for data, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainer.metrics import names


class Throughput:
    """Measures the training itself; evaluation and saving are left out."""

    def __init__(
        self,
        *,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`peak_flops` is the floating-point operations per second of all devices; None where unknown."""
        self._flops_per_token, self._peak_flops, self._clock = flops_per_token, peak_flops, clock
        self._restart()

    def _restart(self) -> None:
        self._since = self._clock()
        self._tokens = 0
        self._steps = 0
        self._paused_s = 0.0
        self._data_wait_s = 0.0

    def step(self, tokens: int, data_wait_s: float = 0.0) -> None:
        """Count one optimizer step over `tokens` (all ranks), `data_wait_s` of it waiting for data."""
        self._tokens += tokens
        self._steps += 1
        self._data_wait_s += data_wait_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside: it is not training."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - began

    def read(self) -> dict[str, float]:
        """Return the means since the last call by metric name; no MFU where the devices' peak is unknown."""
        elapsed = self._clock() - self._since - self._paused_s
        if not self._steps or elapsed <= 0:
            return {}
        rate = self._tokens / elapsed
        metrics = {
            names.TOKENS_PER_S: rate,
            names.STEP_S: elapsed / self._steps,
            names.DATA_WAIT_S: self._data_wait_s / self._steps,
            names.PEAK_GIB: peak_gib(),
            **_reserved(),
        }
        if self._flops_per_token and self._peak_flops:
            metrics[names.MFU] = rate * self._flops_per_token / self._peak_flops
        self._restart()
        return metrics


def _reserved() -> dict[str, float]:
    """Return what PyTorch holds of this process's GPU, in GiB by metric name; nothing without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    return {names.RESERVED_GIB: torch.cuda.max_memory_reserved() / 2**30}


def peak_gib() -> float:
    """Return the most memory that this process has held so far, in GiB: on its GPU, else resident in RAM."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
