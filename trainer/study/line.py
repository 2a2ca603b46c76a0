"""The line from a base to the model that it was continued to: averages, scored where the study's arms are.

An average costs no training and forgets less than the continued model (BaM, arXiv 2407.08699), so that it is
the first thing to try after the fact. The averages are made in memory and not written as models: what is
written is a run directory with the two scores of each, so that they stand beside the arms.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from tokenization import disk
from tokenization.errors import UserError
from tokenization.shards.store import TokenStore
from trainer.checkpoint.history import find_checkpoint
from trainer.checkpoint.merge import MergeInput, averaged, hold_alike, open_model
from trainer.evaluation.held_out import evaluate
from trainer.evaluation.means import weighted_mean
from trainer.evaluation.offline import LoneScorer, open_scored
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.model.architecture import file_name
from trainer.model.loss import CausalLM, plain_name
from trainer.plan.data import open_validation
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import Recipe
from trainer.report.runs import RunHistory, gather_runs
from trainer.storage.run_directory import RunDirectory
from trainer.study.results import Planned, read_record, write_record
from trainer.study.spec import AVERAGED
from trainer.study.trunk import trunk_of

CONTINUED = "replay-0"
"""The arm whose line is drawn."""

PERCENT = tuple(range(0, 101, 10))
"""Shares of the continued model."""


def score_line(out: Path) -> None:
    """Score the averages of each seed and size of a study that has its continued model, and record them.

    Averages that have been scored stay as they are.

    Raises:
        UserError: a model or a validation set is missing or damaged.
        InfrastructureError: the disk is full or fails.
    """
    record = read_record(out)
    added = [one for planned in record.arms if planned.name == CONTINUED for one in _line(out, planned)]
    kept = tuple(arm for arm in record.arms if AVERAGED not in arm.fields)
    write_record(out, replace(record, arms=(*kept, *added)))


def _line(out: Path, planned: Planned) -> list[Planned]:
    """Score the averages of one continued model; none if it has not ended."""
    run = RunDirectory(out / planned.directory)
    if not run.metrics.exists():
        return []
    (history,) = gather_runs([run.path])
    ends = history.phase_ends()
    if not ends or history.tokens < ends[-1] or history.diverged_at is not None:
        return []
    ending = planned.directory.removeprefix(planned.name)
    found = [
        replace(
            planned, name=f"average-{percent}", directory=f"average-{percent}{ending}",
            fields={**planned.fields, AVERAGED: percent / 100},
        )
        for percent in PERCENT
    ]  # fmt: skip
    missing = [one for one in found if not RunDirectory(out / one.directory).metrics.exists()]
    if missing:
        recipe = load_recipe(run.recipe)
        with ExitStack() as stack:
            start = _start(out, planned, recipe, stack)
            end = open_model(find_checkpoint(run.path), stack)
            hold_alike(start, end)
            stores = open_validation(recipe)
            causal = open_scored(str(run.path), end.tokenizer.size)
            for one in missing:
                fill(causal, [start, end], one.fields[AVERAGED])
                scores = _scores(causal, recipe, stores)
                _write(out / one.directory, history, planned.phase, scores)
                told = ", ".join(f"{names.stream_of(name)} {score:.4f}" for name, score in scores.items()
                                 if name in (names.UPSTREAM, names.DOWNSTREAM))  # fmt: skip
                logger.info(f"{one.directory}: {told} bits per byte")
    return found


def _start(out: Path, planned: Planned, recipe: Recipe, stack: ExitStack) -> MergeInput:
    """Open the weights that the arm began with: those of its trunk, or the recipe's base.

    Raises:
        UserError: it began with random weights.
    """
    if planned.phase:
        return open_model(find_checkpoint(trunk_of(out, planned).directory), stack)
    if recipe.model.base is None:
        fix = "give model.base, or a phase before the last that makes the base"
        raise UserError("is missing, and a line cannot begin at random weights", field="model.base", fix=fix)
    return open_model(recipe.model.base, stack)


@torch.no_grad()
def fill(causal: CausalLM, ends: Sequence[MergeInput], share: float) -> None:
    """Give a model the weights (1 − share) · start + share · end; its padding rows stay as they are."""
    own = {
        file_name(ends[0].config["model_type"], plain_name(name)): parameter
        for name, parameter in causal.named_parameters()
    }
    for weight in averaged(ends, (1 - share, share)):
        own[weight.name][: weight.shape[0]].copy_(weight.make())


def _scores(causal: CausalLM, recipe: Recipe, stores: Mapping[str, TokenStore]) -> dict[str, float]:
    """Return the scores on every validation set, and the means of roles, by the names of their metrics."""
    found = {}
    for name, store in stores.items():
        score = evaluate(
            LoneScorer(causal),
            store,
            seq_len=recipe.seq_len,
            micro_batch_size=4,
            max_tokens=recipe.validation.max_tokens,
            document_mask=recipe.document_mask,
        )
        found[names.stream_bits_per_byte(name)] = score.bits_per_byte
        found[names.stream_nats_per_token(name)] = score.nats_per_token
    for role, weights in recipe.validation.means().items():
        for kind in (names.stream_bits_per_byte, names.stream_nats_per_token):
            mean = weighted_mean({kind(name): weight for name, weight in weights.items()}, found)
            if mean is not None:
                found[kind(role)] = mean
    return found


def _write(path: Path, history: RunHistory, phase: int, last: Mapping[str, float]) -> None:
    """Write the run directory of an average: the scores that the arm began with, and its own at the end."""
    start = history.phase_ends()[phase - 1] if phase else 0
    before = [
        record for record in history.records if record["tokens"] <= start and last.keys() <= record.keys()
    ]
    ends = [(record, {name: record[name] for name in last}) for record in before[-1:]]
    ends.append((history.records[-1], dict(last)))
    attempt = history.attempts[-1].number
    begin = {"number": attempt, "restored_step": None, "time": 0.0, "run_id": ""}
    lines = [{**begin, "measured_on": history.measured_on}]
    for record, found in ends:
        place = {"step": record["step"], "tokens": record["tokens"]}
        lines.append({"attempt": attempt, "time": 0.0, **place, **found})
    run, own = RunDirectory(history.path), RunDirectory(path)
    with disk.disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        for file in (run.recipe, run.identity, run.lineage):
            if file.exists():
                shutil.copyfile(file, path / file.name)
        disk.write_atomically(own.metrics, "".join(json.dumps(line) + "\n" for line in lines))
