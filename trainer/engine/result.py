"""What a step did, on its way from the device to the host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch


class StepResult:
    """The result of a step, the same on every rank.

    Its numbers are copied to the host beside the training; the first look at one of them waits for the step.
    """

    def __init__(self, values: torch.Tensor, sources: int) -> None:
        """Take `[norm, applied, stop, …, …]` in fp64: see `pack`."""
        self._sources, self._event = sources, None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @classmethod
    def pack(
        cls,
        norm: torch.Tensor,
        skip: torch.Tensor,
        stop: torch.Tensor,
        nats: torch.Tensor,
        seconds: torch.Tensor,
    ) -> StepResult:
        """Join the numbers of a step: `nats` is [2, sources], `seconds` [ranks]; the others are scalars."""
        scalars = [one.to(nats.device, torch.float64).reshape(1) for one in (norm, ~skip, stop)]
        return cls(torch.cat([*scalars, nats.flatten(), seconds]), nats.shape[1])

    @cached_property
    def _host(self) -> torch.Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._values

    @cached_property
    def _numbers(self) -> list[float]:
        numbers: list[float] = self._host.tolist()
        return numbers

    @property
    def grad_norm(self) -> float:
        """Global gradient norm before clipping; infinite if a gradient was not finite."""
        return self._numbers[0]

    @property
    def applied(self) -> bool:
        """False if gradients were not finite, or a limit was passed, and nothing was changed."""
        return self._numbers[1] > 0

    @property
    def stop(self) -> bool:
        """Whether any rank asked to stop before this step."""
        return self._numbers[2] > 0

    @property
    def source_nats(self) -> torch.Tensor:
        """[sources], summed over the global batch; on the host."""
        return self._host[3 : 3 + self._sources]

    @property
    def source_targets(self) -> torch.Tensor:
        """[sources], target tokens of the global batch; on the host."""
        return self._host[3 + self._sources : 3 + 2 * self._sources]

    @property
    def loss(self) -> float:
        """Nats per target token of the global batch."""
        sources = self._sources
        return sum(self._numbers[3 : 3 + sources]) / sum(self._numbers[3 + sources : 3 + 2 * sources])

    @property
    def rank_seconds(self) -> list[float]:
        """Seconds that each rank took for itself since the step before; see `OwnTime`."""
        return self._numbers[3 + 2 * self._sources :]


class OwnTime:
    """How long this rank computes by itself, without waiting for others: its forward passes.

    On a GPU the device's own clock is read, once it has got there: nothing waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_card = device.type == "cuda"
        self._seconds = 0.0
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count what is computed inside."""
        if self._on_card:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._open.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def add(self, seconds: float) -> None:
        """Count so many seconds of the host, such as those of a slow disk."""
        self._seconds += seconds

    def take(self) -> float:
        """Return the seconds that are known by now, each once."""
        while self._open and self._open[0][1].query():
            begin, end = self._open.pop(0)
            self._seconds += begin.elapsed_time(end) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        return seconds
