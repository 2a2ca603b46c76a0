"""The phases of a run: open one after another, and train it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenization import disk
from tokenization.errors import UserError
from tokenization.tokenizer.files import open_tokenizer
from tokenization.tokenizer.piece_bytes import ByteClasses, piece_bytes
from trainer.checkpoint import manifest
from trainer.checkpoint.base import load_exact_base
from trainer.checkpoint.history import raise_damage
from trainer.checkpoint.load import check_finite, find_damage, load_checkpoint
from trainer.checkpoint.mirror import Mirror
from trainer.checkpoint.save import Saver
from trainer.engine.defaults import with_defaults
from trainer.engine.ds_config import complete
from trainer.engine.engine import Engine, clear_swapped, sharded_loading
from trainer.engine.layout import Layout
from trainer.machine import collectives
from trainer.machine.devices import peak_flops
from trainer.machine.log_lines import logger
from trainer.machine.profile import StepProfile
from trainer.machine.ranks import World
from trainer.machine.sequence import sequence_group
from trainer.machine.signals import Signals
from trainer.machine.watchdog import Watchdog
from trainer.metrics.heartbeat import Heartbeat
from trainer.metrics.log import Metrics
from trainer.metrics.throughput import Throughput
from trainer.mixer.loader import Loader
from trainer.model.base import check_weights, expected_weights
from trainer.model.build import build_model
from trainer.model.loss import CausalLM
from trainer.model.sequence import SequencePart
from trainer.model.size import flops_per_token
from trainer.model.trainable import parameter_groups
from trainer.plan.checks import baselines
from trainer.plan.make import Plan
from trainer.recipe.load import dump_recipe
from trainer.run import loop
from trainer.run.agreement import plan_together
from trainer.run.fitting import open_fitting
from trainer.run.health import Spike
from trainer.run.identity import changes_since_start, identity_of, package_versions, write_first
from trainer.run.left_out import record_left_out
from trainer.run.probe import Prompts
from trainer.run.saving import Saves
from trainer.run.session import Session
from trainer.run.steering import HOW_TO_GO_ON, Steering, told_unheld
from trainer.run.step_log import StepLog
from trainer.run.tasks import TaskEvaluation
from trainer.run.validation import (
    ValidationSets,
    measured_on_all,
    tasks_are_missing,
    validation_is_missing,
)
from trainer.storage.hub import local_directory
from trainer.storage.records import append_record
from trainer.storage.run_directory import RunDirectory
from trainer.storage.safetensors import DTYPES

MIRROR_WAIT_S = 120.0
"""A run that has ended waits so long for the copy of its last checkpoint."""


class PhaseRunner:
    """What outlives a phase: the plan, the run's record, and the saver."""

    def __init__(
        self, plan: Plan, world: World, signals: Signals, watchdog: Watchdog, heartbeat: Heartbeat
    ) -> None:
        self.plan, self.recipe, self.world = plan, plan.recipe, world
        self.signals, self.watchdog, self.heartbeat = signals, watchdog, heartbeat
        self.versions = package_versions()
        self._largest: Layout | None = None
        """What fitted into memory, where the plan's layout did not."""
        self.metrics = self._open_metrics()
        place = self.recipe.checkpoint.mirror if world.rank == 0 else None
        self.mirror = None if place is None else Mirror(place, self.recipe.name)
        self.saver = Saver(
            RunDirectory(self.recipe.directory).checkpoints,
            rank=world.rank,
            world_size=world.world_size,
            gather=collectives.background_gather(),
            keep_last=self.recipe.checkpoint.keep_last,
            keep_every=self.recipe.checkpoint.keep_every,
            asynchronous=self.recipe.checkpoint.asynchronous,
        )

    def _open_metrics(self) -> Metrics:
        """The run's record, from the checkpoint on."""
        plan, checkpoint = self.plan, self.plan.checkpoint
        return Metrics(
            self.recipe.directory,
            self.recipe.logging,
            rank=self.world.rank,
            name=self.recipe.name,
            total_tokens=plan.mixture.total_tokens,
            tokens=checkpoint.manifest.tokens if checkpoint else 0,
            restored_step=checkpoint.manifest.step if checkpoint else None,
            config=json.loads(self.recipe.model_dump_json()),
            measured_on=measured_on_all(self.recipe, plan.validation),
            others=[self.heartbeat],
        )

    def train_phases(self) -> None:
        """Train phase after phase, from where the run stands; after each one the plan is made again.

        A signal ends the process at once while a phase is opened: all that was trained is committed then.
        A run that is finished is scored at its end if that validation gave way to a stop.
        """
        self._train_phases()
        if self.mirror is not None:
            self.mirror.finish(MIRROR_WAIT_S if self.signals.received is None else 0.0)

    def _train_phases(self) -> None:
        if self.plan.decision.kind == "finished":
            self._open_session().close()
            self.heartbeat.end("finished")
            return
        while self.plan.decision.kind in ("start", "restore", "new_phase"):
            self.signals.all_saved()
            self._record_start()
            session = self._open_session()
            self.signals.unsaved = True
            with self.heartbeat.following(session.position, self.plan.mixture.total_tokens):
                ending = loop.train_phase(session)
                if session.spike is None:
                    session.close()
                else:
                    session.abandon()
            if session.steering is not None:
                self.plan = replace(self.plan, mixture=session.steering.mixture)
            if session.spike is not None:
                self._roll_back(session, session.spike)
            # A stop that came with a spike ends the run here: a step more would leave the base unscored
            # where the run went back to its start.
            self.signals.agree(collectives.all_gather(self.signals.received))
            if session.over_budget is not None:
                raise UserError(told_unheld(session.over_budget, session.state.step), fix=HOW_TO_GO_ON)
            if ending == "stopped" or self.signals.stop_requested:
                self._note_stop(session)
                return
            if session.spike is None:
                self.plan = plan_together(self.recipe, self.world)
                logger.info(self.plan.decision.render())
        refused = self.plan.decision.kind == "refuse"
        self.heartbeat.end(
            "failed" if refused else "finished", self.plan.decision.reason if refused else None
        )

    def _note_stop(self, session: Session) -> None:
        """Say why the run ends before its end."""
        why = f"{self.signals.received.name} at step {session.state.step}" if self.signals.received else None
        if session.out_of_budget:
            why = self._out_of_budget(session.state.step, session.state.tokens)
            logger.info(why)
        self.heartbeat.end("stopped", why)

    def _roll_back(self, session: Session, spike: Spike) -> None:
        """Go back to the last checkpoint, and leave out what made the spike from now on."""
        self.metrics.close()
        lines: list[str] = []
        if self.world.rank == 0:
            directory = RunDirectory(self.recipe.directory)
            lines = record_left_out(
                directory, spike, self.plan.mixture, self.plan.stores, self.recipe.model.tokenizer
            )
        collectives.all_gather(None)  # the record is there
        self.plan = plan_together(self.recipe, self.world)
        back = f"step {self.plan.checkpoint.manifest.step}" if self.plan.checkpoint else "the start"
        logger.warning(
            f"step {spike.step}: rolled back to {back} for its {spike.what}; samples {spike.samples.start:,} "
            f"to {spike.samples.stop:,} of phase {session.state.phase_name!r} are left out"
        )
        for line in lines:
            logger.warning(line)
        self.metrics = self._open_metrics()

    def _out_of_budget(self, step: int, tokens: int) -> str:
        """The line for a run that `stop_after` ended."""
        return (
            f"stop_after {self.recipe.stop_after:,} ended the run at step {step}, "
            f"{tokens:,} of {self.plan.mixture.total_tokens:,} tokens; raise it to train on"
        )

    def _open_session(self) -> Session:
        """The phase's engine with its weights, and everything else that it is trained with."""
        started = time.perf_counter()
        recipe, checkpoint = self.recipe, self.plan.checkpoint
        phase = self.plan.decision.state.phase
        engine, layout = open_fitting(recipe, phase, self._first_layout(), self._open_engine)
        self._largest = layout if layout != self.plan.layout else None
        plan = self.plan = replace(self.plan, layout=layout)
        state = plan.decision.state
        group, _ = plan.layout.place(self.world.rank)
        throughput = self._throughput()
        hosts = collectives.all_gather(socket.gethostname())
        step_log = StepLog(self.metrics, recipe, plan.mixture, throughput, self.saver.last_good, hosts)
        validation = ValidationSets(
            engine,
            plan.validation,
            recipe,
            self._validation_micro_batch(),
            World(group, self.world.local_rank, plan.layout.data_parallel_size),
            baselines(checkpoint),
            stop_requested=lambda: self.signals.stop_requested,
            classes=self._byte_classes,
            progress=self.watchdog.beat,
        )
        steering = Steering.of(plan, engine, validation, writes=self.world.rank == 0)
        session = Session(
            recipe=recipe,
            state=steering.begin(state) if steering else state,
            engine=engine,
            loader=self._loader(),
            validation=validation,
            steering=steering,
            step_log=step_log,
            saves=self._open_saves(step_log, throughput),
            throughput=throughput,
            signals=self.signals,
            watchdog=self.watchdog,
            profile=StepProfile(
                RunDirectory(recipe.directory).profile, self.world.rank, recipe.logging.profile_steps
            ),
            versions=self.versions,
            prompts=self._prompts,
            tasks=self._tasks,
            tokens_before=state.tokens,
        )
        logger.info(f"ready to train after {time.perf_counter() - started:.1f} s")
        session.make_up(validation_is_missing(plan, self.world), tasks_are_missing(plan, self.world))
        return session

    def _open_saves(self, step_log: StepLog, throughput: Throughput) -> Saves:
        """Begin the saves of a phase, as the plan stands."""
        plan, checkpoint = self.plan, self.plan.checkpoint
        return Saves(
            self.saver,
            step_log,
            throughput,
            on_failure=self.recipe.checkpoint.on_failure,
            model_config=plan.model_config,
            generation=plan.generation,
            saved_step=checkpoint.manifest.step if checkpoint else -1,
            shown=self.heartbeat.saving,
            committed=self.mirror.add if self.mirror else lambda path: None,
        )

    @cached_property
    def _byte_classes(self) -> ByteClasses | None:
        """What takes the scores of validation sets apart, unless ranks share rows."""
        if not self.plan.validation or self.recipe.sequence_parallel_size > 1:
            return None
        return ByteClasses(piece_bytes(open_tokenizer(self.recipe.model.tokenizer)))

    @cached_property
    def _prompts(self) -> Prompts | None:
        """What is continued at each validation."""
        tokenizer = open_tokenizer(self.recipe.model.tokenizer) if self.recipe.probe is not None else None
        return None if tokenizer is None else Prompts(self.recipe, tokenizer, self.world.rank)

    @cached_property
    def _tasks(self) -> TaskEvaluation | None:
        """What answers the tasks of the recipe."""
        asked = self.recipe.validation.tasks is not None
        return TaskEvaluation(self.plan, self.world.rank) if asked else None

    def _validation_micro_batch(self) -> int:
        """Windows of validation text in a forward pass: no more tokens than in one of training."""
        length = self.recipe.seq_len_of(self.plan.decision.state.phase)
        return max(1, self.plan.layout.micro_batch_size * length // self.recipe.seq_len)

    def _open_engine(self, layout: Layout) -> Engine:
        """The engine, with the weights of the checkpoint, of the base, or new ones."""
        plan, recipe, decision = self.plan, self.recipe, self.plan.decision
        config = self._ds_config(layout)
        own_base = None if plan.checkpoint else _checkpoint_at(recipe.model.base)
        if own_base is not None:
            raise_damage(find_damage(own_base), fix="copy it again, or take another model.base")
        weights = plan.checkpoint or own_base
        if weights is None and recipe.model.base is not None and not Path(recipe.model.base).is_dir():
            fetched = local_directory(recipe.model.base, "model.base")
            check_weights(fetched, plan.model_config, expected_weights(plan.model_config))
        clear_swapped(config)
        with sharded_loading(config) as initialize:
            model = build_model(
                plan.model_config,
                recipe,
                plan.vocab_size,
                weights=weights is None,
                initialize=initialize,
                wrap=self._wrap(),
            )
        phase = recipe.phases[decision.state.phase]
        groups = parameter_groups(model, phase, recipe.optimizer.weight_decay)
        _, part = plan.layout.place(self.world.rank)
        parts = plan.layout.sequence_parallel_size
        average = recipe.model.average is not None
        engine = Engine(model, groups, config, recipe.optimizer, part=(part, parts), average=average)
        if weights is not None:
            load_checkpoint(engine, weights, decision.keep_optimizer)
        elif recipe.model.base is not None and recipe.model.dtype != "fp32":
            dtype = DTYPES[recipe.model.dtype]
            for line in load_exact_base(engine, recipe.model.base, plan.model_config, dtype):
                logger.warning(line)
        check_finite(engine, str(weights.path) if weights else recipe.model.base)
        return engine

    def _wrap(self) -> Callable[..., CausalLM]:
        """What makes the model: one of whole rows, or of this rank's part of them."""
        parts = self.plan.layout.sequence_parallel_size
        return CausalLM if parts == 1 else partial(SequencePart, group=sequence_group(parts))

    def _first_layout(self) -> Layout:
        """The layout to try first: what fitted before, if it was for samples of the same length."""
        planned, fitted = self.plan.layout, self._largest
        if fitted is None or fitted.samples_per_rank != planned.samples_per_rank:
            return planned
        return fitted

    def _ds_config(self, layout: Layout) -> dict[str, Any]:
        """The whole DeepSpeed configuration, with every default that changes numbers."""
        plan = self.plan
        return with_defaults(complete(plan.preset, self.recipe, layout, plan.model_config))

    def _loader(self) -> Loader:
        """The reader of this rank's samples of the mixture; ranks that share them read the same ones."""
        plan = self.plan
        group, _ = plan.layout.place(self.world.rank)
        return Loader(
            plan.mixture,
            plan.stores,
            micro_batch_size=plan.layout.micro_batch_size,
            rank=group,
            world_size=plan.layout.data_parallel_size,
            document_mask=self.recipe.document_mask,
            # The sources of a finished run may have gone, and nothing is read of them.
            eos_id=next(iter({**plan.stores, **plan.validation}.values())).eos_id,
        )

    def _throughput(self) -> Throughput:
        """A meter that starts now."""
        device_peak = peak_flops(collectives.device_name(), self.recipe.model.dtype)
        return Throughput(
            flops_per_token=flops_per_token(
                self.plan.model_config, self.recipe.seq_len_of(self.plan.decision.state.phase)
            ),
            peak_flops=device_peak and device_peak * self.world.world_size,
        )

    def _record_start(self) -> None:
        """Write the resolved recipe, and a line of lineage: what was decided at this start, and why."""
        if self.world.rank != 0:
            return
        directory = RunDirectory(self.recipe.directory)
        directory.path.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(directory.recipe, dump_recipe(self.recipe))
        identity = identity_of(self.plan)
        for change in changes_since_start(directory, identity):
            logger.warning(change)
        write_first(directory, identity)
        checkpoint = self.plan.checkpoint
        line = {
            "time": time.time(),
            **self.plan.decision.lineage(),
            "checkpoint": str(checkpoint.path) if checkpoint else None,
            "passed_over": list(self.plan.broken),
            "world_size": self.world.world_size,
            "deepspeed": self.recipe.deepspeed,
            "deepspeed_config": self._ds_config(self._first_layout()),
            "versions": self.versions,
        }
        append_record(directory.lineage, line, logger.warning)


def _checkpoint_at(base: str | None) -> manifest.Checkpoint | None:
    """The base, if it is one of our checkpoints."""
    if base is None or not (Path(base) / manifest.MARKER).is_file():
        return None
    return manifest.read_checkpoint(Path(base))
