"""What each rank of `runs.launch_several` does: trains one recipe after another through `trainer.run`."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator

from tokenization.errors import RewarmError
from trainer.engine.engine import Engine
from trainer.machine import collectives
from trainer.machine.compile_cache import clearing_stale_locks
from trainer.machine.log_lines import show_log_lines
from trainer.machine.ranks import World, current_world
from trainer.model.loss import CausalLM
from trainer.plan.make import make_plan
from trainer.recipe import load
from trainer.run.session import Session
from trainer.run.start import train_plan


@contextlib.contextmanager
def poisoned(bad_steps: list[int], world: World) -> Iterator[None]:
    """The last rank's loss of the last micro batch of some steps (from 1, of this start) is infinite."""
    forward, train_step = CausalLM.forward, Engine.train_step
    steps, left = 0, -1

    def counted(engine: Engine, micro_batches: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps, left
        steps, left = steps + 1, len(micro_batches)
        return train_step(engine, micro_batches, *args, **kwargs)

    def infinite(model: CausalLM, *args: Any, **options: Any) -> Any:
        nonlocal left
        loss, *rest = forward(model, *args, **options)
        left -= model.training
        last = model.training and left == 0 and world.rank == world.world_size - 1
        bad = last and steps in bad_steps
        return (loss * float("inf") if bad else loss, *rest)

    CausalLM.forward, Engine.train_step = infinite, counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        CausalLM.forward, Engine.train_step = forward, train_step  # type: ignore[method-assign]


@contextlib.contextmanager
def spiked(positions: list[int]) -> Iterator[None]:
    """The loss of the step that begins at some sample of the phase is fifty times what it is."""
    forward, train_step, bad = CausalLM.forward, Session.train_step, False

    def noted(session: Session) -> None:
        nonlocal bad
        bad = session.state.samples in positions
        train_step(session)

    def larger(model: CausalLM, *args: Any, **options: Any) -> Any:
        if len(found := forward(model, *args, **options)) < 3:
            return found  # the successors that a probe asks for
        loss, nats, targets = found
        factor = 50.0 if bad and model.training else 1.0
        return loss * factor, nats * factor, targets

    CausalLM.forward, Session.train_step = larger, noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        CausalLM.forward, Session.train_step = forward, train_step  # type: ignore[method-assign]


def one(job: dict[str, Any], world: World) -> dict[str, Any]:
    """Trains a job; its exit status, the error's text where it is a known one, and its seconds."""
    started = time.monotonic()
    recipe = load.load_recipe(job["recipe"])
    if job["after"] and world.rank == 0:
        source = Path(job["after"])
        shutil.copytree(source, recipe.directory / "checkpoints" / source.name)
        shutil.copy(source.parents[1] / "recipe.resolved.yaml", recipe.directory)
        if (left_out := source.parents[1] / "left_out.json").exists():
            shutil.copy(left_out, recipe.directory)
    collectives.all_gather(None)  # the copy is there
    plan = make_plan(recipe, world.world_size)
    said = plan.decision.render()
    with poisoned(job["poison"], world), spiked(job["spikes"]):
        status = train_plan(plan, world)
    return {"status": status, "said": said, "seconds": time.monotonic() - started}


def main(todo: Path) -> None:
    world = current_world()
    # DeepSpeed knows CPUs on which fp16 is fast; on the others torch computes it all the same.
    get_accelerator().is_fp16_supported = lambda: True
    show_log_lines(world.rank)
    with clearing_stale_locks():
        collectives.join_ranks(world)
    found = []
    for job in json.loads(todo.read_text()):
        try:
            found.append(one(job, world))
        except RewarmError as error:
            raise RuntimeError(f"{job}: {error}") from error
        if world.rank == 0:
            print(f"{job['recipe']}: {found[-1]['seconds']:.1f} s", flush=True)
    if world.rank == 0:
        todo.with_suffix(".done").write_text(json.dumps(found))
    collectives.leave_ranks()


if __name__ == "__main__":
    main(Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))))
