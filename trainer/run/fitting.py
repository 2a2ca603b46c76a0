"""The memory that a step needs is tried before the first one: too little shows at once, in one line."""

from __future__ import annotations

import socket
from collections.abc import Callable

import torch

from tokenization.errors import UserError
from trainer.engine.engine import Engine
from trainer.engine.layout import Layout, halved
from trainer.machine import collectives
from trainer.machine.log_lines import logger
from trainer.metrics.throughput import peak_gib
from trainer.mixer.batch import MicroBatch
from trainer.recipe.schema import Recipe


def open_fitting(
    recipe: Recipe, phase: int, layout: Layout, open_engine: Callable[[Layout], Engine]
) -> tuple[Engine, Layout]:
    """Open a phase's engine whose step fits into memory; `micro_batch_size: auto` is halved until it does.

    The global batch stays. Every rank must run out of memory at the same place, as alike ranks do: one that
    waits for another is ended by the time-out of the process group.

    Raises:
        UserError: a step does not fit; it names settings that need less.
    """
    while True:
        engine, short = _try(recipe, phase, layout, open_engine)
        hosts = collectives.all_gather((short, socket.gethostname()))
        found = next(((rank, *one) for rank, one in enumerate(hosts) if one[0]), None)
        if found is None:
            assert engine is not None
            return engine, layout
        if engine is not None:
            engine.close()
        smaller = halved(layout) if recipe.micro_batch_size == "auto" else None
        where = f"rank {found[0]} (host {found[2]}) ran out of memory in a trial step ({found[1]})"
        if smaller is None:
            raise UserError(
                f"is too much: {where}",
                field="micro_batch_size",
                value=layout.micro_batch_size,
                fix=_advice(recipe, layout),
            )
        logger.warning(
            f"{where}; micro_batch_size: auto goes from {layout.micro_batch_size} to "
            f"{smaller.micro_batch_size}, with {smaller.gradient_accumulation_steps} micro batches a step"
        )
        layout = smaller


def _try(
    recipe: Recipe, phase: int, layout: Layout, open_engine: Callable[[Layout], Engine]
) -> tuple[Engine | None, str | None]:
    """Open the engine and try a step; return the engine, if there is one, and what was too much."""
    engine = None
    try:
        engine = open_engine(layout)
        documents = recipe.document_mask == "causal_per_document"
        length = recipe.seq_len_of(phase)
        engine.rehearse(MicroBatch.largest(layout.micro_batch_size, length, documents=documents))
        return engine, None
    except torch.OutOfMemoryError:
        if collectives.device().type == "cuda":
            torch.cuda.empty_cache()
        return engine, f"micro batch {layout.micro_batch_size}, {peak_gib():.1f} GiB were in use"


def _advice(recipe: Recipe, layout: Layout) -> str:
    """Say which settings need less memory, the cheapest first."""
    smaller = halved(layout)
    options = []
    if smaller is not None:
        options.append(f"micro_batch_size: {smaller.micro_batch_size} (or auto); the global batch stays")
    if recipe.model.activation_checkpointing == "none":
        options.append("model.activation_checkpointing: full")
    options.append("a higher ZeRO stage, such as deepspeed: ds_configs/zero3.json, or offload")
    return "; or ".join(options)
