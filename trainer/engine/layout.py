"""Divide a global batch among ranks and micro batches."""

from __future__ import annotations

from dataclasses import dataclass

from tokenization.errors import UserError
from trainer.recipe.schema import Recipe

MOST_SHOWN = 1024
"""Samples in the largest micro batch that an error message proposes."""


@dataclass(frozen=True)
class Layout:
    """`global_batch_size = micro_batch_size * gradient_accumulation_steps * world_size`."""

    world_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int


def halved(layout: Layout) -> Layout | None:
    """Return the layout of the same global batch with at most half the micro batch; None below one sample."""
    rows = layout.micro_batch_size * layout.gradient_accumulation_steps
    smaller = (size for size in range(layout.micro_batch_size // 2, 0, -1) if rows % size == 0)
    micro = next(smaller, None)
    return None if micro is None else Layout(layout.world_size, micro, rows // micro)


def layout(recipe: Recipe, world_size: int, largest_micro_batch: int) -> Layout:
    """Derive the accumulation steps; `micro_batch_size: auto` takes the largest divisor that fits in memory.

    Raises:
        UserError: the global batch cannot be divided evenly; the fix names sizes that can.
    """
    batch = recipe.global_batch_size
    if batch % world_size:
        below = batch - batch % world_size
        near = [size for size in (below, below + world_size) if size]
        raise UserError(
            f"does not divide evenly among {world_size} ranks",
            field="global_batch_size",
            value=batch,
            fix=f"use {' or '.join(map(str, near))}, or a world size that divides it",
        )
    rows = batch // world_size
    largest = min(max(largest_micro_batch, 1), rows)
    fitting = next(size for size in range(largest, 0, -1) if rows % size == 0)
    micro = fitting if recipe.micro_batch_size == "auto" else recipe.micro_batch_size
    if rows % micro:
        fits = [size for size in range(1, min(rows, MOST_SHOWN) + 1) if rows % size == 0]
        raise UserError(
            f"does not divide the {rows} samples that each of {world_size} ranks has in a step",
            field="micro_batch_size",
            value=micro,
            fix=f"use one of {fits}, or auto",
        )
    return Layout(world_size, micro, rows // micro)
