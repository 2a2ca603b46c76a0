"""Write a plan as text and as JSON, for `rewarm plan`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from tokenization.tables import text_table
from trainer.engine.layout import Layout
from trainer.machine.devices import available_bytes
from trainer.mixer.simulate import account
from trainer.model.size import flops_per_token, parameters
from trainer.plan.make import Plan

GIB = 2**30


def plan_to_json(plan: Plan, lr_at: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the plan as plain data; `lr_at` lists tokens of the run at which to give the LR."""
    decision = plan.decision
    repeat = plan.mixture.first_repeat()
    return {
        "decision": decision.to_json(),
        "lr_at": decision.lr_at(lr_at),
        "sources": [dataclasses.asdict(row) for row in account(plan.mixture)],
        "first_repeat": None if repeat is None else {"source": repeat[0], "tokens": repeat[1]},
        "layout": dataclasses.asdict(plan.layout),
        "phases": _phases(plan),
        "memory_bytes": {
            **dataclasses.asdict(plan.memory),
            "available": available_bytes(plan.layout.world_size),
        },
        "checkpoint_bytes": checkpoint_bytes(plan),
        "parameters": parameters(plan.model_config),
        "flops": _flops(plan),
        "broken_checkpoints": list(plan.broken),
        "notes": list(plan.notes),
        "recipe": json.loads(plan.recipe.model_dump_json()),
    }


def checkpoint_bytes(plan: Plan) -> int:
    """Return the size of one checkpoint: fp32 weights and both moments."""
    return 12 * parameters(plan.model_config)


def render_plan(plan: Plan, lr_at: Sequence[int] | None = None) -> str:
    """Write the plan for people."""
    parts = [
        "\n".join([*plan.broken, *plan.notes, plan.decision.render()]),
        text_table(
            ("phase", "tokens", "seq_len", "steps", "schedule", "max_lr", "trained"),
            [
                [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row.values()]
                for row in _phases(plan)
            ],
        ),
        _sources(plan),
        "\n".join(_sizes(plan)),
    ]
    if lr_at is not None:
        rows = [[f"{row['tokens']:,}", f"{row['lr']:.9g}"] for row in plan.decision.lr_at(lr_at)]
        parts.append(text_table(("tokens", "lr"), rows))
    return "\n\n".join(parts)


def _sizes(plan: Plan) -> list[str]:
    """Write how the batch is divided, and the memory, disk space and FLOPs that the run needs."""
    recipe, layout, memory = plan.recipe, plan.layout, plan.memory
    activations = memory.per_sample * layout.micro_batch_size
    checkpoint = checkpoint_bytes(plan)
    return [
        f"batch    {recipe.global_batch_size:,} samples = {layout.micro_batch_size} micro_batch_size"
        f" x {layout.gradient_accumulation_steps} gradient_accumulation_steps x {_ranks(layout)};"
        f" {recipe.tokens_per_step:,} tokens per step",
        f"model    {parameters(plan.model_config):,} parameters; the run takes {_flops(plan):.3g} FLOPs",
        f"memory   about {memory.states / GIB:.2f} GiB of states, {activations / GIB:.2f} GiB of activations"
        f" per rank; {memory.host / GIB:.2f} GiB of offloaded states on the host",
        f"disk     {checkpoint / GIB:.2f} GiB per checkpoint,"
        f" {recipe.checkpoint.keep_last * checkpoint / GIB:.2f} GiB for all that are kept",
    ]


def _ranks(layout: Layout) -> str:
    """Write the ranks as the batch is divided among them."""
    if layout.sequence_parallel_size == 1:
        return f"{layout.world_size} ranks"
    return f"{layout.data_parallel_size} groups of {layout.sequence_parallel_size} ranks"


def _phases(plan: Plan) -> list[dict[str, Any]]:
    recipe = plan.recipe
    return [
        {
            "phase": phase.name,
            "tokens": phase.length,
            "seq_len": recipe.seq_len_of(number),
            "steps": -(-plan.mixture.phase_samples[number] // recipe.batch_of(number)),
            "schedule": phase.schedule.kind,
            "max_lr": phase.schedule.max_lr,
            "trained": phase.train if isinstance(phase.train, str) else ", ".join(phase.train),
        }
        for number, phase in enumerate(recipe.phases)
    ]


def _sources(plan: Plan) -> str:
    """Write what each phase takes from each source, and when the first one repeats."""
    rows = [
        [
            row.phase,
            row.source,
            row.role,
            f"{float(row.share):.4%}",
            f"{row.phase_tokens:,}",
            f"{row.samples:,}",
            f"{row.epochs:.3f}",
            "-" if row.max_epochs is None else str(row.max_epochs),
        ]
        for row in account(plan.mixture)
    ]
    head = ("phase", "source", "role", "share", "tokens", "samples so far", "epochs so far", "max_epochs")
    repeat = plan.mixture.first_repeat()
    note = (
        f"source {repeat[0]} repeats from token {repeat[1]:,} of the run on"
        if repeat
        else "no source repeats"
    )
    return f"{text_table(head, rows)}\n{note}"


def _flops(plan: Plan) -> int:
    lengths = [plan.recipe.seq_len_of(number) for number in range(len(plan.recipe.phases))]
    return sum(
        samples * length * flops_per_token(plan.model_config, length)
        for samples, length in zip(plan.mixture.phase_samples, lengths, strict=True)
    )
