"""Trains on one rank at every ZeRO stage, and counts what the host reads of tensors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import runs
from trainer.machine import collectives
from trainer.machine.ranks import World
from trainer.model.loss import CausalLM
from trainer.plan.make import make_plan
from trainer.recipe.load import load_recipe
from trainer.run.session import Session
from trainer.run.start import train_plan

STEPS, BAD = 8, 5
forward, train_step = CausalLM.forward, Session.train_step


class Reads(TorchDispatchMode):
    """Counts the reads of single values, for each of which a host would wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


def train(data: Path, out: Path, stage: int) -> dict[str, Any]:
    """The reads of each step; the gradients of step `BAD` are not finite."""
    tree = runs.long_recipe(data, out / f"run-{stage}", STEPS)
    preset = out / f"zero{stage}.json"
    preset.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    tree |= {"deepspeed": str(preset), "micro_batch_size": 4, "validation": {"every_tokens": 10**9}}
    tree["checkpoint"]["every_tokens"] = 10**9
    tree["logging"] = {"tensorboard": False, "every_steps": 100}
    counts: list[int] = []

    def counted(session: Session) -> None:
        with Reads() as reads:
            train_step(session)
        counts.append(reads.count)

    def poisoned(model: CausalLM, *args: Any, **options: Any) -> Any:
        loss, *rest = forward(model, *args, **options)
        return (loss * float("inf") if model.training and len(counts) + 1 == BAD else loss, *rest)

    Session.train_step, CausalLM.forward = counted, poisoned  # type: ignore[method-assign]
    recipe = load_recipe(runs.write(tree, out / f"{stage}.yaml"))
    status = train_plan(make_plan(recipe, 1), World())
    return {"status": int(status), "reads": counts, "saved": runs.manifest(out / f"run-{stage}", STEPS)}


def main(data: Path, out: Path) -> None:
    collectives.join_ranks(World())
    found = {stage: train(data, out, stage) for stage in range(4)}
    (out / "found.json").write_text(json.dumps(found))
    collectives.leave_ranks()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
