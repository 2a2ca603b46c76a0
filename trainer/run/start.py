"""A run from its plan to its end: joins the ranks, opens each phase, lets the loop train it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint import history
from trainer.checkpoint.load import find_damage
from trainer.engine.requirements import check_machine
from trainer.machine import collectives
from trainer.machine.compile_cache import clearing_stale_locks
from trainer.machine.ranks import World
from trainer.machine.run_lock import hold_run_lock
from trainer.machine.signals import Signals
from trainer.machine.watchdog import Watchdog
from trainer.plan.make import Plan, make_plan
from trainer.run.phases import PhaseRunner, check_ranks_agree
from trainer.storage.run_directory import RunDirectory


def start(plan: Plan, world: World) -> int:
    """Joins the ranks, trains `plan`, and leaves; the exit status.

    Raises:
        UserError: what the machine lacks.
        RewarmError: what went wrong. Other ranks may wait for this one then, so the process must end.
    """
    check_machine(plan.preset, plan.recipe.model.dtype)
    with clearing_stale_locks(_say if world.rank == 0 else _silent):
        collectives.join_ranks(world)
    status = train_plan(plan, world)
    collectives.leave_ranks()
    return status


def train_plan(plan: Plan, world: World) -> int:
    """Trains until the plan's end, or until a signal or `stop_after` ends it early; the exit status.

    The ranks have joined. One process may train several plans, one after another.

    Raises:
        RewarmError: as `run`.
    """
    say = _say if world.rank == 0 else _silent
    try:
        with ExitStack() as held:
            _claim(plan, world, held, say)
            # Another job may have saved since this one looked, at the latest until the directory was claimed.
            before, plan = plan.decision.render(), make_plan(plan.recipe, world.world_size)
            if plan.decision.render() != before:
                say(plan.decision.render())
            return _train_verified(_verified(plan, world, say), world, say)
    except OSError as error:
        where = error.filename or plan.recipe.directory
        raise InfrastructureError(f"{where}: {error.strerror or error}") from error


def _claim(plan: Plan, world: World, held: ExitStack, say: Any) -> None:
    """Rank 0 holds the run directory for all.

    Raises:
        InfrastructureError: on every rank, if another job is there and stays.
    """
    failure = None
    if world.rank == 0:
        try:
            held.enter_context(hold_run_lock(plan.recipe.directory, say))
        except (InfrastructureError, OSError) as error:
            failure = str(error)
    failure = collectives.broadcast(failure)
    if failure is not None:
        raise InfrastructureError(failure)


def _train_verified(plan: Plan, world: World, say: Any) -> int:
    if plan.decision.kind in ("finished", "refuse"):
        return 0 if plan.decision.kind == "finished" else UserError.exit_code
    if world.rank == 0 and plan.checkpoint is not None:
        checkpoints = RunDirectory(plan.recipe.directory).checkpoints
        for line in history.quarantine(checkpoints, plan.checkpoint.manifest.step):
            say(line)
    with Signals() as signals, Watchdog() as watchdog:
        runner = PhaseRunner(plan, world, signals, watchdog, say)
        try:
            runner.train()
            signals.agree(collectives.all_gather(signals.received))
        finally:
            runner.metrics.close()
    return signals.exit_code


def _verified(plan: Plan, world: World, say: Any) -> Plan:
    """A plan whose checkpoint's files all have their checksums; every rank reads its share of them.

    Raises:
        InfrastructureError: no checkpoint is good.
    """
    bad: set[Path] = set()
    while True:
        check_ranks_agree(plan)
        if plan.checkpoint is None:
            return plan
        found = find_damage(plan.checkpoint)
        if not found:
            return plan
        for line in found:
            say(f"{line}; this checkpoint is passed over")
        bad.add(plan.checkpoint.path)
        plan = make_plan(plan.recipe, world.world_size, skip=bad)
        say(plan.decision.render())


def _say(text: str) -> None:
    for line in text.splitlines():
        print(f"rewarm: {line}", file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
