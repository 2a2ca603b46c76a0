"""Write a plan as text and as JSON, for `rewarm plan`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from tokenization.tables import text_table
from trainer.engine.layout import Layout
from trainer.mixer.simulate import account
from trainer.model.size import parameters
from trainer.plan.budget import budget_lines, budget_plans
from trainer.plan.make import Plan
from trainer.plan.outlook import Outlook, outlook, planned_tokens
from trainer.plan.presets import PresetFit
from trainer.plan.switches import switch_lines

GIB = 2**30

BLOCKS = "▁▂▃▄▅▆▇█"

DRAWN_COLUMNS = 64
"""Characters of the learning rate's curve."""


def plan_to_json(
    plan: Plan, found: Outlook | None = None, lr_at: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return the plan as plain data; `lr_at` lists tokens of the run at which to give the LR."""
    found = found or outlook(plan)
    decision = plan.decision
    repeat = _first_repeat(plan)
    return {
        "decision": decision.to_json(),
        "lr_at": decision.lr_at(lr_at),
        "sources": [dataclasses.asdict(row) for row in account(plan.mixture)],
        "first_repeat": None if repeat is None else {"source": repeat[0], "tokens": repeat[1]},
        "layout": dataclasses.asdict(plan.layout),
        "phases": _phases(plan),
        "task_evaluations": task_evaluations(plan),
        "forgetting_budgets": budget_plans(plan),
        "missing": _missing(plan),
        "available_bytes": plan.available,
        "broken_checkpoints": list(plan.broken),
        "notes": list(plan.notes),
        "recipe": json.loads(plan.recipe.model_dump_json()),
        **(_needs_to_json(plan, found) if found is not None else {}),
    }


def _needs_to_json(plan: Plan, found: Outlook) -> dict[str, Any]:
    micro = plan.layout.micro_batch_size
    assert plan.memory is not None
    return {
        "memory_bytes": _memory_to_json(found.presets[0], micro),
        "presets": [_memory_to_json(fit, micro) for fit in found.presets],
        "activation_checkpointing": {name: memory.peak(micro) for name, memory in found.modes.items()},
        "checkpoint_bytes": found.disk.checkpoint,
        "disk": dataclasses.asdict(found.disk),
        "network_bytes_per_step": dataclasses.asdict(found.network),
        "parameters": parameters(plan.model_config),
        "flops": found.compute.flops,
        "compute": dataclasses.asdict(found.compute),
    }


def _memory_to_json(fit: PresetFit, micro: int) -> dict[str, Any]:
    parts: dict[str, Any] = {"preset": fit.name, "chosen": fit.chosen, "why_not": fit.why_not}
    if (memory := fit.memory) is not None:
        names = ("weights", "gradients", "optimizer", "buffers", "host", "per_sample")
        parts |= {name: getattr(memory, name) for name in names}
        parts |= {"activations": memory.activations(micro), "peak": memory.peak(micro)}
    return parts | {"largest_micro_batch": fit.largest_micro_batch}


def _missing(plan: Plan) -> dict[str, Any]:
    fields = dataclasses.asdict(plan.missing)
    fields.pop("notes")
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}


def render_plan(plan: Plan, found: Outlook | None = None, lr_at: Sequence[int] | None = None) -> str:
    """Write the plan for people."""
    found = found or outlook(plan)
    parts = [
        "\n".join([*plan.broken, *plan.notes, plan.decision.render()]),
        _curve(plan),
        text_table(
            ("phase", "tokens", "seq_len", "steps", "schedule", "max_lr", "trained"),
            [
                [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row.values()]
                for row in _phases(plan)
            ],
        ),
        _sources(plan),
        *(["\n".join(budget)] if (budget := list(budget_lines(plan))) else []),
        "\n".join([_batch(plan), *_tasks(plan), *(_needs(plan, found) if found is not None else ())]),
    ]
    if found is not None:
        parts += [_presets(plan, found), "\n".join(switch_lines(plan, found))]
    if lr_at is not None:
        rows = [[f"{row['tokens']:,}", f"{row['lr']:.9g}"] for row in plan.decision.lr_at(lr_at)]
        parts.append(text_table(("tokens", "lr"), rows))
    return "\n\n".join(parts)


def _curve(plan: Plan) -> str:
    """Draw the learning rate over the whole run as a line of blocks."""
    end = plan.decision.spans[-1].stop
    rows = plan.decision.lr_at(np.linspace(0, end, DRAWN_COLUMNS, endpoint=False).astype(int).tolist())
    rates = [row["lr"] for row in rows]
    top = max(max(rates), 1e-300)
    drawn = "".join(BLOCKS[min(int(rate / top * len(BLOCKS)), len(BLOCKS) - 1)] for rate in rates)
    return f"LR       {drawn}  0 to {end:,} tokens; the highest drawn is {top:.3g}"


def _batch(plan: Plan) -> str:
    """Write how the batch is divided."""
    recipe, layout = plan.recipe, plan.layout
    tokens = sum(count for count, _ in planned_tokens(plan))
    return (
        f"batch    {recipe.global_batch_size:,} samples = {layout.micro_batch_size} micro_batch_size"
        f" x {layout.gradient_accumulation_steps} gradient_accumulation_steps x {_ranks(layout)};"
        f" {recipe.tokens_per_step:,} tokens per step, {tokens:,} in all"
    )


def task_evaluations(plan: Plan) -> int:
    """Count how often the whole run answers the recipe's tasks."""
    recipe = plan.recipe
    if recipe.validation.tasks is None:
        return 0
    every, step = recipe.tasks_every, recipe.tokens_per_step
    ends = list(accumulate(count for count, _ in planned_tokens(plan)))
    extra = sum((end - step) // every == end // every for end in ends)  # at the end of a phase, and not due
    return 1 + (ends[-1] // every if every > step else ends[-1] // step) + extra


def _tasks(plan: Plan) -> Iterator[str]:
    """Write which tasks are answered, and how often."""
    tasks, times = plan.recipe.validation.tasks, task_evaluations(plan)
    if tasks is not None:
        yield (
            f"tasks    {', '.join(tasks.names)} by lm-eval before the first step, every "
            f"{plan.recipe.tasks_every:,} tokens and at the end of each phase: {times:,} times"
            + (f"; the first {tasks.limit:,} examples of each" if tasks.limit else "; all examples of each")
        )


def _needs(plan: Plan, found: Outlook) -> Iterator[str]:
    """Write the model's size, the time, the network and the disk space that the run needs."""
    compute, disk, network, ranks = found.compute, found.disk, found.network, plan.layout.world_size
    yield (
        f"model    {parameters(plan.model_config):,} parameters, "
        f"{plan.model_config['vocab_size']:,} rows in the embedding; "
        f"the run takes {compute.flops:.3g} FLOPs by 6N + 12·L·d·s, {compute.flops_6n:.3g} by 6N"
    )
    if compute.hours is None or compute.gpu_hours is None or compute.tokens_per_second is None:
        yield "time     not known: --gpu names the GPU, such as h100"
    else:
        yield (
            f"time     {compute.hours:,.1f} hours, {compute.gpu_hours:,.0f} GPU-hours, "
            f"{compute.tokens_per_second:,.0f} tokens/s on {ranks} GPUs "
            f"of {(compute.peak or 0) / 1e12:.0f} TFLOP/s "
            f"at {compute.mfu:.1%} MFU by 6N + 12·L·d·s ({compute.mfu_source})"
        )
    yield (
        f"network  {network.total / GIB:.2f} GiB sent per rank and step: "
        f"{network.gradients / GIB:.2f} of gradients, "
        f"{network.weights / GIB:.2f} of weights"
    )
    yield (
        f"disk     {disk.checkpoint / GIB:.2f} GiB per checkpoint in {disk.files} rank files, "
        f"{disk.kept / GIB:.2f} GiB for the {disk.checkpoints_kept} that are kept or being written; "
        f"an export takes {disk.export / GIB:.2f} GiB in bf16, {disk.export_files} files"
    )


def _presets(plan: Plan, found: Outlook) -> str:
    """Write the memory of a rank under every preset, the chosen one first."""
    micro = plan.layout.micro_batch_size
    head = (
        "preset", "weights", "gradients", "AdamW", "buffers", "activations", "peak", "host", "fits",
        "largest micro_batch_size",
    )  # fmt: skip
    rows = []
    for fit in found.presets:
        name = f"{fit.name} (chosen)" if fit.chosen else fit.name
        if (memory := fit.memory) is None:
            rows.append([name, *["–"] * 7, f"no: {fit.why_not}", "–"])
            continue
        numbers = (
            memory.weights, memory.gradients, memory.optimizer, memory.buffers, memory.activations(micro),
            memory.peak(micro), memory.host,
        )  # fmt: skip
        fitting = "yes" if memory.peak(micro) <= plan.available else "no"
        most = f"{fit.largest_micro_batch:,}" if fit.largest_micro_batch else "none fits"
        rows.append([name, *(f"{number / GIB:.2f}" for number in numbers), fitting, most])
    table = text_table(head, rows, "<>>>>>>><>")
    return (
        f"memory   GiB per rank with micro_batch_size {micro}, "
        f"of {plan.available / GIB:.1f} that may be used{'' if plan.cuda else _HOST}; "
        f"activations hold the logits of {plan.model_config['vocab_size']:,} pieces\n{table}"
    )


_HOST = " (this host's memory among its ranks, since it has no GPU: --gpu or --gpu-memory names one)"


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
            "?" if row.source in plan.missing.sources else f"{row.epochs:.3f}",
            "-" if row.max_epochs is None else str(row.max_epochs),
        ]
        for row in account(plan.mixture)
    ]
    head = ("phase", "source", "role", "share", "tokens", "samples so far", "epochs so far", "max_epochs")
    repeat = _first_repeat(plan)
    note = "no source repeats"
    if plan.missing.sources:
        note = "whether a source repeats is not known before all are there"
    elif repeat:
        note = f"source {repeat[0]} repeats from token {repeat[1]:,} of the run on"
    return f"{text_table(head, rows)}\n{note}"


def _first_repeat(plan: Plan) -> tuple[str, int] | None:
    """Return the first source that repeats, if the sizes of all sources are known."""
    return None if plan.missing.sources else plan.mixture.first_repeat()
