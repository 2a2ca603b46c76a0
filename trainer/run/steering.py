"""Steer the replay of a phase by its forgetting budget: measure, decide, record, apply."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenization import disk
from tokenization.errors import UserError
from trainer.checkpoint.base import pull_to_base
from trainer.engine.engine import Engine
from trainer.evaluation.paired import Documents, PerDocument, paired_forgetting
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.mixer.decisions import MOST_HALVINGS, bounds_now, changes_of, line_of_record, make_record
from trainer.mixer.mixture import Mixture
from trainer.mixer.replay_control import BURN_IN, PATIENCE, Reading, round_reading
from trainer.mixer.segments import decision_samples
from trainer.plan.make import Plan
from trainer.recipe.schema import Recipe, Segment
from trainer.run.validation import ValidationSets
from trainer.scheduler.state import RunState
from trainer.storage.run_directory import RunDirectory

PULL = 0.25
"""Share of the way to the base by which weights are pulled."""

HOW_TO_GO_ON = (
    "raise forgetting_budget or replay_max, set on_failure: lower_lr or pull_to_base, or start another run "
    "with a lower max_lr; the same command goes on after such an edit"
)

SURE = 1.96
"""Standard deviations of an interval of 95 %."""


@dataclass
class Steering:
    """The forgetting budget of a run, for the phase that runs."""

    recipe: Recipe
    mixture: Mixture
    """With every decision so far."""
    engine: Engine
    validation: ValidationSets
    documents: Documents
    model_config: Mapping[str, Any]
    writes: bool
    """Whether this rank writes the log of decisions."""

    @classmethod
    def of(cls, plan: Plan, engine: Engine, validation: ValidationSets, *, writes: bool) -> Steering | None:
        """Return the steering of a run; None if no phase has a forgetting budget."""
        recipe = plan.recipe
        budgets = [phase.steered for phase in recipe.phases if phase.steered is not None]
        if not budgets:
            return None
        count = max(budget.measured_samples for budget in budgets)
        documents = Documents.choose(validation.stores["upstream"], count, recipe.seq_len)
        return cls(recipe, plan.mixture, engine, validation, documents, plan.model_config, writes)

    def begin(self, state: RunState) -> RunState:
        """Measure the base before the first step, and hold the documents against those of the run.

        Raises:
            UserError: other documents are measured now than at the start.
        """
        checksum = self.documents.checksum
        if state.measured and state.measured["documents"] != checksum:
            what = "is other text than that which the base was measured on"
            fix = "put the shards back, and leave seq_len and measured_samples as they were"
            raise UserError(what, field="validation.upstream", fix=fix)
        self._write(state)  # what was decided after the checkpoint will be decided again
        if state.measured or state.step:
            return state
        # It is not cut short by a signal: without it the run could not go on.
        nats = self.validation.score_documents(self.documents, "measuring the base", stoppable=False)
        assert nats is not None
        return replace(state, measured={"documents": checksum, "base": nats.tolist()})

    def due(self, state: RunState) -> bool:
        """Tell whether a decision is to be made here: the same on every rank, and after a resume."""
        every = decision_samples(self.recipe, state.phase)
        if every is None or not state.measured:
            return False
        made = max((one["decision"] for one in state.phase_decisions), default=0)
        return state.samples // every > made

    def decide(self, state: RunState) -> RunState | None:
        """Measure and decide; return the state after it, or None if a signal cut the measurement short."""
        nats = self._measure(state)
        return None if nats is None else self._decided(state, nats)

    def apply(self, state: RunState) -> dict[str, float]:
        """Record the last decision, and do what it says; returns its metrics."""
        record = state.decisions[-1]
        self._write(state)
        logger.info(told_of(record, state.step))
        if not record["held"] and record["action"] != "stop":  # a stop ends with the same line
            logger.warning(told_unheld(record, state.step))
        if record["action"] == "pull_to_base":
            assert self.recipe.model.base is not None
            pull_to_base(self.engine, self.recipe.model.base, self.model_config, PULL)
        return metrics_of(record)

    def _write(self, state: RunState) -> None:
        """Write the log of decisions as the state has it; it may fail, since the checkpoint has it."""
        file = RunDirectory(self.recipe.directory).decisions
        if not self.writes or not (state.decisions or file.exists()):
            return
        try:
            disk.write_atomically(file, "".join(f"{line_of_record(one)}\n" for one in state.decisions))
        except OSError as error:
            logger.warning(f"{file}: cannot be written ({error.strerror})")

    def _measure(self, state: RunState) -> PerDocument | None:
        averaged = self.engine.averaged() if self.recipe.model.average else nullcontext()
        with averaged:
            return self.validation.score_documents(
                self.documents, f"measuring forgetting after step {state.step}"
            )

    def _decided(self, state: RunState, nats: PerDocument) -> RunState:
        phase, every = state.phase, decision_samples(self.recipe, state.phase)
        assert every is not None
        segment = self._segment(phase)
        applies_from = (state.samples // every + 1) * every
        record = make_record(
            segment,
            state.decisions,
            state.measured["documents"],
            phase=phase,
            sample=state.samples,
            every=every,
            reading=self._reading(state, nats),
            bounds=bounds_now(self.mixture, segment, phase, applies_from),
        )
        decisions = (*state.decisions, record)
        self.mixture = self.mixture.with_changes(self.recipe, changes_of(decisions))
        running = replace(state.running, data=self.mixture.describe(phase))
        return replace(state, decisions=decisions, phases=(*state.phases[:-1], running))

    def _segment(self, phase: int) -> Segment:
        return self.recipe.phases[phase].mixture[0]

    def _reading(self, state: RunState, nats: PerDocument) -> Reading:
        base = np.array(state.measured["base"])
        forgetting, spread = paired_forgetting(nats, base, self.documents)
        curve, trained = state.running.curve, state.phase_trained_tokens
        burn_in = max(curve.warmup_tokens, BURN_IN * float(curve.pieces[-1].stop))
        return Reading(
            round_reading(forgetting),
            round_reading(spread),
            curve.share_behind(trained),
            state.samples / state.running.samples,
            warm=trained > burn_in,
        )


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a decision."""
    forgetting, deviation = record["state"]["forgetting"], record["deviation"]
    return {
        names.BUDGET: record["budget"],
        names.BUDGET_READING: record["reading"]["forgetting"],
        names.BUDGET_LOW: forgetting - SURE * deviation,
        names.BUDGET_HIGH: forgetting + SURE * deviation,
        names.REPLAY_RATIO: record["replay"] / record["of"],
    }


def told_of(record: dict[str, Any], step: int) -> str:
    """Tell a decision in a line."""
    forgetting, sure = record["state"]["forgetting"], SURE * record["deviation"]
    return (
        f"step {step}: forgetting {forgetting:+.4f} ± {sure:.4f} bits per byte, budget {record['budget']:g}; "
        f"replay {record['replay'] / record['of']:.1%} from sample {record['applies_from']:,} of the phase on"
    )


def told_unheld(record: dict[str, Any], step: int) -> str:
    """Say that the budget cannot be held, and what is done about it."""
    done = {
        "stop": "the run stops",
        "lower_lr": "the learning rate is halved from here on",
        "pull_to_base": "the weights are pulled towards the base",
        None: f"the learning rate was halved {MOST_HALVINGS} times already, and the run goes on",
    }[record["action"]]
    return (
        f"step {step}: the forgetting budget, {record['budget']:g} bits per byte, cannot be held: "
        f"forgetting is {record['state']['forgetting']:.4g} after {PATIENCE} decisions or more at the "
        f"highest replay ratio, {record['bounds'][1] / record['of']:.1%}; {done}"
    )
