"""The ranks of `rewarm selftest` with an error in them: the last rank's gradients are left out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed.comm
import torch

from trainer.engine import selftest

SMALLEST = 1000
"""Elements of the smallest tensor that is taken for gradients."""


def without_last_rank(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def planted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        last = deepspeed.comm.get_world_size() - 1
        if last and tensor.numel() >= SMALLEST and deepspeed.comm.get_rank() == last:
            tensor.zero_()
        return reduce(tensor, *args, **kwargs)

    return planted


if __name__ == "__main__":
    for name in ("all_reduce", "reduce"):
        setattr(deepspeed.comm, name, without_last_rank(getattr(deepspeed.comm, name)))
    words = [word for word in sys.argv[1:] if not word.startswith("--local")]
    selftest.run_trials(Path(words[0]), [int(word) for word in words[1:]])
