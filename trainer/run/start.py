"""A run from its plan to its end: join the ranks, take the run lock, verify the checkpoint, train."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tokenization.errors import ExitCode, InfrastructureError
from trainer.checkpoint import history
from trainer.checkpoint.load import find_damage
from trainer.checkpoint.manifest import Unreadable
from trainer.engine.requirements import check_machine
from trainer.machine import collectives
from trainer.machine.compile_cache import clearing_stale_locks
from trainer.machine.garbage import collected_where_due
from trainer.machine.log_lines import keep_log, logger
from trainer.machine.memory import keep_freed_memory
from trainer.machine.ranks import World
from trainer.machine.run_lock import hold_run_lock
from trainer.machine.signals import Signals
from trainer.machine.watchdog import Watchdog
from trainer.metrics.heartbeat import Heartbeat
from trainer.plan.make import Plan
from trainer.run.agreement import check_shared, plan_together
from trainer.run.phases import PhaseRunner
from trainer.run.preflight import check_machines
from trainer.run.validation import tasks_are_missing, validation_is_missing
from trainer.storage.run_directory import RunDirectory


def start(plan: Plan, world: World) -> int:
    """Join the ranks, train `plan`, and leave; returns the exit status.

    Raises:
        UserError: the machine lacks something that the recipe needs.
        InfrastructureError: the ranks cannot meet, or one of them has gone.
        RewarmError: as `train_plan`. Other ranks may wait for this one then, so the process must end.
    """
    check_machine(plan.preset, plan.recipe.model.dtype, plan.recipe.model.compile)
    keep_freed_memory()
    with collectives.lost_peers_named():
        with clearing_stale_locks():
            collectives.join_ranks(world)
        status = train_plan(plan, world)
        collectives.leave_ranks()
    return status


def train_plan(plan: Plan, world: World) -> int:
    """Train until the plan's end, or until a signal or `stop_after` ends it early; returns the exit status.

    The ranks have joined. One process may train several plans, one after another.

    Raises:
        UserError: the recipe cannot be trained as it stands.
        InfrastructureError: the run directory is in use, or the disk, the network or a node failed.
    """
    try:
        with ExitStack() as held:
            _hold_run_lock(plan, world, held)
            # Another job may have saved since this one looked, at the latest until it released the lock.
            check_shared(plan.recipe.directory, world)
            keep_log(RunDirectory(plan.recipe.directory).rank_log(world.rank))
            heartbeat = held.enter_context(Heartbeat(plan.recipe.directory, rank=world.rank))
            held.enter_context(collectives.lost_peers_named())
            before, plan = plan.decision.render(), plan_together(plan.recipe, world)
            if plan.decision.render() != before:
                logger.info(plan.decision.render())
            check_machines(plan, world)
            return _train_verified(_verified(plan, world), world, heartbeat)
    except OSError as error:
        where = error.filename or plan.recipe.directory
        raise InfrastructureError(f"{where}: {error.strerror or error}") from error


def _hold_run_lock(plan: Plan, world: World, held: ExitStack) -> None:
    """Rank 0 holds the run lock for all.

    Raises:
        InfrastructureError: on every rank, if another job holds it and does not exit.
    """
    failure = None
    if world.rank == 0:
        try:
            held.enter_context(hold_run_lock(plan.recipe.directory))
        except (InfrastructureError, OSError) as error:
            failure = str(error)
    failure = collectives.broadcast(failure)
    if failure is not None:
        raise InfrastructureError(failure)


def _verified(plan: Plan, world: World) -> Plan:
    """A plan whose checkpoint's files all have their checksums; every rank reads its share of them.

    Raises:
        UserError: no checkpoint is good.
        InfrastructureError: a disk failed.
    """
    bad: dict[Path, str] = {}
    while True:
        if plan.checkpoint is None:
            return plan
        found = find_damage(plan.checkpoint)
        if not found:
            return plan
        for line in found:
            logger.warning(f"{line}; this checkpoint is passed over")
        bad[plan.checkpoint.path] = next((line for line in found if isinstance(line, Unreadable)), found[0])
        plan = plan_together(plan.recipe, world, skip=bad)
        logger.info(plan.decision.render())


def _train_verified(plan: Plan, world: World, heartbeat: Heartbeat) -> int:
    """Train a plan whose checkpoint is verified; returns the exit status."""
    if plan.decision.kind == "finished":
        missing = (validation_is_missing(plan, world), tasks_are_missing(plan, world))
        if not any(missing):
            heartbeat.end("finished")
            return ExitCode.DONE
        logger.info("the evaluation of its last step was cut short by a stop, and is made up for now")
    if plan.decision.kind == "refuse":
        heartbeat.end("failed", plan.decision.reason)
        return ExitCode.USER
    if world.rank == 0 and plan.checkpoint is not None:
        for line in history.quarantine(
            RunDirectory(plan.recipe.directory).checkpoints, plan.checkpoint.manifest.step
        ):
            logger.warning(line)
    signals = Signals(unsaved=False)
    watchdog = Watchdog(
        hang_after_s=plan.recipe.health.hang_after, stop_requested=lambda: signals.stop_requested
    )
    with signals, watchdog, collected_where_due():
        runner = PhaseRunner(plan, world, signals, watchdog, heartbeat)
        try:
            runner.train_phases()
        finally:
            runner.metrics.close()
    return signals.exit_code
