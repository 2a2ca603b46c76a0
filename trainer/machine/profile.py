"""A trace of some steps by PyTorch's profiler, for the browser's tracing page or Perfetto."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.machine.log_lines import logger

WARM_UP = 5
"""Steps of a start before the trace: the first ones allocate and compile."""


class StepProfile:
    """Traces steps of this rank once per start, and writes the file when they are over."""

    def __init__(self, folder: Path, rank: int, steps: int) -> None:
        """Trace `steps` steps into `folder`; with 0 nothing happens."""
        self._file = folder / f"rank-{rank:04d}.json"
        self._profile: profile | None = None
        self._left = WARM_UP + steps
        if steps:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
                profile_memory=True,
            )
            self._profile.start()

    def step(self) -> None:
        """Count a step."""
        if self._profile is not None:
            self._profile.step()
            self._left -= 1
            if not self._left:
                self.close()

    def close(self) -> None:
        """End the trace, also of a run that ends before its steps are over."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, traced: profile) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        traced.export_chrome_trace(str(self._file))
        logger.info(f"a trace of steps is in {self._file}; open it in https://ui.perfetto.dev")
