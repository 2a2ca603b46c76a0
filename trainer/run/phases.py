"""Open one phase after another, and train it."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokenization import disk
from tokenization.errors import InfrastructureError
from trainer.checkpoint import manifest
from trainer.checkpoint.load import find_damage, load_checkpoint
from trainer.checkpoint.save import Saver
from trainer.engine.ds_config import complete
from trainer.engine.engine import Engine, clear_swapped, sharded_loading
from trainer.machine import collectives
from trainer.machine.devices import peak_flops
from trainer.machine.ranks import World
from trainer.machine.signals import Signals
from trainer.machine.watchdog import Watchdog
from trainer.metrics.log import Metrics
from trainer.metrics.stability import NonFinite, Spikes
from trainer.metrics.throughput import Throughput
from trainer.mixer.loader import Loader
from trainer.model.build import build_model
from trainer.model.size import flops_per_token
from trainer.model.trainable import parameter_groups
from trainer.plan.checks import baselines
from trainer.plan.make import Plan, make_plan
from trainer.recipe.load import dump_recipe
from trainer.run import loop
from trainer.run.session import Session
from trainer.storage.run_directory import LINEAGE, RESOLVED, checkpoints_of

PACKAGES = ("rewarm", "torch", "deepspeed", "transformers", "sentencepiece", "numpy")


def check_ranks_agree(plan: Plan) -> None:
    """Ranks that see different things would train different runs, or wait for each other for ever.

    Raises:
        InfrastructureError: they do.
    """
    checkpoint = f"checkpoint {plan.checkpoint.path}" if plan.checkpoint else "no checkpoint"
    decision = f"{plan.decision.kind} at phase {plan.decision.state.phase}"
    mine = (checkpoint, decision, f"micro_batch_size {plan.layout.micro_batch_size}")
    for seen in zip(*collectives.all_gather(mine), strict=True):
        if len(different := sorted(set(seen))) > 1:
            fix = "set micro_batch_size" if "micro" in seen[0] else "is run_dir on a shared disk?"
            raise InfrastructureError(f"ranks differ: {' or '.join(different)}; {fix}")


class PhaseRunner:
    """What outlives a phase."""

    def __init__(self, plan: Plan, world: World, signals: Signals, watchdog: Watchdog, say: Any) -> None:
        self.plan, self.recipe, self.world = plan, plan.recipe, world
        self.signals, self.watchdog, self.say = signals, watchdog, say
        checkpoint = plan.checkpoint
        self.versions = package_versions()
        self.metrics = Metrics(
            self.recipe.directory,
            self.recipe.logging,
            rank=world.rank,
            name=self.recipe.name,
            total_tokens=sum(
                self.recipe.phase_steps(number) * self.recipe.tokens_per_step
                for number in range(len(self.recipe.phases))
            ),
            tokens=checkpoint.manifest.tokens if checkpoint else 0,
            restored_step=checkpoint.manifest.step if checkpoint else None,
            config=json.loads(self.recipe.model_dump_json()),
        )
        if world.rank == 0:
            self.say = self.metrics.say  # lines above the progress bar, not across it
        self.saver = Saver(
            checkpoints_of(self.recipe),
            rank=world.rank,
            world_size=world.world_size,
            gather=collectives.background_gather(),
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
            ending = loop.train_phase(session)
            session.close()
            if ending == "stopped":
                return
            self.plan = make_plan(self.recipe, self.world.world_size)
            check_ranks_agree(self.plan)
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
        if checkpoint is None and own_base is not None and (found := find_damage(own_base)):
            raise InfrastructureError("; ".join(found))
        weights = checkpoint or own_base
        clear_swapped(config)
        with sharded_loading(config):
            model = build_model(self.recipe, self.plan.vocab_size, weights=weights is None)
        groups = parameter_groups(model, phase, self.recipe.optimizer.weight_decay)
        engine = Engine(model, groups, config, self.recipe.optimizer)
        if weights is not None:
            load_checkpoint(engine, weights, decision.keep_optimizer)
        loader = Loader(
            self.plan.mixture,
            self.plan.stores,
            seq_len=self.recipe.seq_len,
            micro_batch_size=layout.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
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
        device_peak = peak_flops(collectives.device_name(), self.recipe.model.dtype)
        return Throughput(
            flops_per_token=flops_per_token(self.plan.model_config, self.recipe.seq_len),
            peak_flops=device_peak and device_peak * self.world.world_size,
        )

    def _record(self) -> None:
        """The resolved recipe, and a line of lineage: what was decided at this start, and why."""
        if self.world.rank != 0:
            return
        directory = self.recipe.directory
        directory.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(directory / RESOLVED, dump_recipe(self.recipe))
        checkpoint = self.plan.checkpoint
        line = {
            "time": time.time(),
            **self.plan.decision.lineage(),
            "checkpoint": str(checkpoint.path) if checkpoint else None,
            "passed_over": list(self.plan.broken),
            "world_size": self.world.world_size,
            "deepspeed": self.recipe.deepspeed,
            "versions": self.versions,
        }
        with open(directory / LINEAGE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _checkpoint_at(base: str | None) -> manifest.Checkpoint | None:
    """The base, if it is one of our checkpoints."""
    if base is None or not (Path(base) / manifest.MARKER).is_file():
        return None
    return manifest.read_checkpoint(Path(base))


def package_versions() -> dict[str, str]:
    """What this run is computed with."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
