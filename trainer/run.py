"""A run from its plan to its end: joins the ranks, opens each phase, lets the loop train it."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer import disk, distributed, loop
from trainer.checkpoint import commit
from trainer.checkpoint.load import damaged, load
from trainer.checkpoint.save import Saver
from trainer.claim import claimed
from trainer.engine import Engine, check_machine, clear_swapped, sharded_loading
from trainer.errors import InfrastructureError, UserError
from trainer.health import NonFinite, Signals, Spikes, Watchdog, clearing_stale_locks
from trainer.launcher import World
from trainer.metrics import Metrics, Throughput
from trainer.mixer.loader import Loader
from trainer.model.build import build
from trainer.model.flops import flops_per_token, peak_flops
from trainer.model.trainable import parameter_groups
from trainer.plan import RESOLVED, Plan, baselines, checkpoints, prepare
from trainer.recipe import dump
from trainer.session import Session
from trainer.sharding import complete

LINEAGE = "lineage.jsonl"
"""File in the run directory: every start, what was decided, and why."""

PACKAGES = ("rewarm", "torch", "deepspeed", "transformers", "sentencepiece", "numpy")


def run(plan: Plan, here: World) -> int:
    """Joins the ranks, trains `plan`, and leaves; the exit status.

    Raises:
        UserError: what the machine lacks.
        RewarmError: what went wrong. Other ranks may wait for this one then, so the process must end.
    """
    check_machine(plan.preset, plan.recipe.model.dtype)
    with clearing_stale_locks(_say if here.rank == 0 else _silent):
        distributed.start(here)
    status = train(plan, here)
    distributed.stop()
    return status


def train(plan: Plan, here: World) -> int:
    """Trains until the plan's end, or until a signal or `stop_after` ends it early; the exit status.

    The ranks have joined. One process may train several plans, one after another.

    Raises:
        RewarmError: as `run`.
    """
    say = _say if here.rank == 0 else _silent
    try:
        with ExitStack() as held:
            _claim(plan, here, held, say)
            # Another job may have saved since this one looked, at the latest until the directory was claimed.
            before, plan = plan.decision.render(), prepare(plan.recipe, here.world_size)
            if plan.decision.render() != before:
                say(plan.decision.render())
            return _train(_verified(plan, here, say), here, say)
    except OSError as error:
        where = error.filename or plan.recipe.directory
        raise InfrastructureError(f"{where}: {error.strerror or error}") from error


def _claim(plan: Plan, here: World, held: ExitStack, say: Any) -> None:
    """Rank 0 holds the run directory for all.

    Raises:
        InfrastructureError: on every rank, if another job is there and stays.
    """
    failure = None
    if here.rank == 0:
        try:
            held.enter_context(claimed(plan.recipe.directory, say))
        except (InfrastructureError, OSError) as error:
            failure = str(error)
    failure = distributed.from_rank0(failure)
    if failure is not None:
        raise InfrastructureError(failure)


def _train(plan: Plan, here: World, say: Any) -> int:
    if plan.decision.kind in ("finished", "refuse"):
        return 0 if plan.decision.kind == "finished" else UserError.exit_code
    if here.rank == 0 and plan.checkpoint is not None:
        for line in commit.set_aside(checkpoints(plan.recipe), plan.checkpoint.manifest.step):
            say(line)
    with Signals() as signals, Watchdog() as watchdog:
        runner = _Runner(plan, here, signals, watchdog, say)
        try:
            runner.train()
            signals.agree(distributed.from_all(signals.received))
        finally:
            runner.metrics.close()
    return signals.exit_code


def _verified(plan: Plan, here: World, say: Any) -> Plan:
    """A plan whose checkpoint's files all have their checksums; every rank reads its share of them.

    Raises:
        InfrastructureError: no checkpoint is good.
    """
    bad: set[Path] = set()
    while True:
        _agreed(plan)
        if plan.checkpoint is None:
            return plan
        found = damaged(plan.checkpoint)
        if not found:
            return plan
        for line in found:
            say(f"{line}; this checkpoint is passed over")
        bad.add(plan.checkpoint.path)
        plan = prepare(plan.recipe, here.world_size, skip=bad)
        say(plan.decision.render())


def _agreed(plan: Plan) -> None:
    """Ranks that see different things would train different runs, or wait for each other for ever.

    Raises:
        InfrastructureError: they do.
    """
    checkpoint = f"checkpoint {plan.checkpoint.path}" if plan.checkpoint else "no checkpoint"
    decision = f"{plan.decision.kind} at phase {plan.decision.state.phase}"
    mine = (checkpoint, decision, f"micro_batch_size {plan.layout.micro_batch_size}")
    for seen in zip(*distributed.from_all(mine), strict=True):
        if len(different := sorted(set(seen))) > 1:
            mend = "set micro_batch_size" if "micro" in seen[0] else "is run_dir on a shared disk?"
            raise InfrastructureError(f"ranks differ: {' or '.join(different)}; {mend}")


class _Runner:
    """What outlives a phase."""

    def __init__(self, plan: Plan, here: World, signals: Signals, watchdog: Watchdog, say: Any) -> None:
        self.plan, self.recipe, self.here = plan, plan.recipe, here
        self.signals, self.watchdog, self.say = signals, watchdog, say
        checkpoint = plan.checkpoint
        self.versions = versions()
        self.metrics = Metrics(
            self.recipe.directory,
            self.recipe.logging,
            rank=here.rank,
            name=self.recipe.name,
            total_tokens=sum(
                self.recipe.phase_steps(number) * self.recipe.tokens_per_step
                for number in range(len(self.recipe.phases))
            ),
            tokens=checkpoint.manifest.tokens if checkpoint else 0,
            restored_step=checkpoint.manifest.step if checkpoint else None,
            config=json.loads(self.recipe.model_dump_json()),
        )
        if here.rank == 0:
            self.say = self.metrics.say  # lines above the progress bar, not across it
        self.saver = Saver(
            checkpoints(self.recipe),
            rank=here.rank,
            world_size=here.world_size,
            gather=distributed.beside(),
            keep_last=self.recipe.checkpoint.keep_last,
            keep_every=self.recipe.checkpoint.keep_every,
            asynchronous=self.recipe.checkpoint.asynchronous,
            say=self.say,
        )

    def train(self) -> None:
        """Phase after phase, from where the run stands; after each one the plan is made anew."""
        while self.plan.decision.kind in ("start", "restore", "new_phase"):
            self._record()
            session = self._open()
            ending = loop.train(session)
            session.close()
            if ending == "stopped":
                return
            self.plan = prepare(self.recipe, self.here.world_size)
            _agreed(self.plan)
            self.say(self.plan.decision.render())

    def _open(self) -> Session:
        """The engine with its weights, and everything else that a phase is trained with."""
        started = time.perf_counter()
        decision, checkpoint = self.plan.decision, self.plan.checkpoint
        state = decision.state
        phase = self.recipe.phases[state.phase]
        layout = self.plan.layout
        config = complete(self.plan.preset, self.recipe, layout, self.plan.model_config)
        own_base = _checkpoint_at(self.recipe.model.base)
        if checkpoint is None and own_base is not None and (found := damaged(own_base)):
            raise InfrastructureError("; ".join(found))
        weights = checkpoint or own_base
        clear_swapped(config)
        with sharded_loading(config):
            model = build(self.recipe, self.plan.vocab_size, weights=weights is None)
        groups = parameter_groups(model, phase, self.recipe.optimizer.weight_decay)
        engine = Engine(model, groups, config, self.recipe.optimizer)
        if weights is not None:
            load(engine, weights, decision.keep_optimizer)
        loader = Loader(
            self.plan.mixture,
            self.plan.stores,
            seq_len=self.recipe.seq_len,
            micro_batch_size=layout.micro_batch_size,
            rank=self.here.rank,
            world_size=self.here.world_size,
            document_mask=self.recipe.document_mask,
            eos_id=next(iter(self.plan.stores.values())).eos_id,
        )
        session = Session(
            recipe=self.recipe,
            state=state,
            mixture=self.plan.mixture,
            engine=engine,
            loader=loader,
            validation=self.plan.validation,
            model_config=self.plan.model_config,
            generation=self.plan.generation,
            micro_batch_size=layout.micro_batch_size,
            saver=self.saver,
            metrics=self.metrics,
            throughput=self._throughput(),
            signals=self.signals,
            watchdog=self.watchdog,
            say=self.say,
            versions=self.versions,
            baseline=baselines(checkpoint),
            tokens_before=state.tokens,
            saved_step=checkpoint.manifest.step if checkpoint else -1,
            non_finite=NonFinite(),
            spikes=Spikes(),
        )
        self.say(f"ready to train after {time.perf_counter() - started:.1f} s")
        if state.step == 0 and self.plan.validation:
            session.evaluate()
            session.log()
        return session

    def _throughput(self) -> Throughput:
        """A meter that starts now."""
        device_peak = peak_flops(distributed.device_name(), self.recipe.model.dtype)
        return Throughput(
            flops_per_token=flops_per_token(self.plan.model_config, self.recipe.seq_len),
            peak_flops=device_peak and device_peak * self.here.world_size,
        )

    def _record(self) -> None:
        """The resolved recipe, and a line of lineage: what was decided at this start, and why."""
        if self.here.rank != 0:
            return
        directory = self.recipe.directory
        directory.mkdir(parents=True, exist_ok=True)
        disk.write_text(directory / RESOLVED, dump(self.recipe))
        checkpoint = self.plan.checkpoint
        line = {
            "time": time.time(),
            **self.plan.decision.lineage(),
            "checkpoint": str(checkpoint.path) if checkpoint else None,
            "passed_over": list(self.plan.broken),
            "world_size": self.here.world_size,
            "deepspeed": self.recipe.deepspeed,
            "versions": self.versions,
        }
        with open(directory / LINEAGE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _checkpoint_at(base: str | None) -> commit.Checkpoint | None:
    """The base, if it is one of our checkpoints."""
    if base is None or not (Path(base) / commit.MARKER).is_file():
        return None
    return commit.read(Path(base))


def versions() -> dict[str, str]:
    """What this run is computed with."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _say(text: str) -> None:
    for line in text.splitlines():
        print(f"rewarm: {line}", file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
