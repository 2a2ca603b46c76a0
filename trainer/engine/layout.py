"""Divide a global batch among ranks and micro batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from tokenization.errors import UserError
from trainer.recipe.schema import Recipe

MOST_SHOWN = 1024
"""Samples in the largest micro batch that an error message proposes."""


@dataclass(frozen=True)
class Layout:
    """`global_batch_size = micro_batch_size * gradient_accumulation_steps * data_parallel_size`."""

    world_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    sequence_parallel_size: int = 1
    """Ranks that hold the parts of the same samples; they follow each other."""

    @property
    def data_parallel_size(self) -> int:
        """Groups of ranks, each with samples of its own."""
        return self.world_size // self.sequence_parallel_size

    @property
    def samples_per_rank(self) -> int:
        """Samples of a step that each group of ranks has."""
        return self.micro_batch_size * self.gradient_accumulation_steps

    def place(self, rank: int) -> tuple[int, int]:
        """Return the group that a rank belongs to, and the part of every sample that it holds."""
        return divmod(rank, self.sequence_parallel_size)


def halved(layout: Layout) -> Layout | None:
    """Return the layout of the same global batch with at most half the micro batch; None below one sample."""
    rows = layout.samples_per_rank
    smaller = (size for size in range(layout.micro_batch_size // 2, 0, -1) if rows % size == 0)
    micro = next(smaller, None)
    return (
        None
        if micro is None
        else replace(layout, micro_batch_size=micro, gradient_accumulation_steps=rows // micro)
    )


def layout(recipe: Recipe, world_size: int, largest_micro_batch: int, phase: int = 0) -> Layout:
    """Derive a phase's accumulation steps; `micro_batch_size: auto` takes the largest divisor that fits.

    `largest_micro_batch` samples fit in memory. In a phase whose samples are longer or shorter than the
    recipe's a `micro_batch_size` is understood in tokens, and is as large a divisor as they allow.

    Raises:
        UserError: the ranks or the global batch cannot be divided evenly; the fix names sizes that can.
    """
    batch, parts = recipe.batch_of(phase), recipe.sequence_parallel_size
    length = recipe.seq_len_of(phase)
    if world_size % parts:
        sizes = [size for size in range(1, min(world_size, MOST_SHOWN) + 1) if world_size % size == 0]
        raise UserError(
            f"does not divide the {world_size} ranks",
            field="sequence_parallel_size",
            value=parts,
            fix=f"use one of {sizes}, or a multiple of {parts} ranks",
        )
    groups = world_size // parts
    who = f"{groups} ranks" if parts == 1 else f"{groups} groups of {parts} ranks"
    if batch % groups:
        step = (groups * Fraction(length, recipe.seq_len)).numerator
        below = recipe.global_batch_size - recipe.global_batch_size % step
        near = [size for size in (below, below + step) if size]
        samples = "" if length == recipe.seq_len else f"makes {batch} samples of {length:,} tokens, which "
        raise UserError(
            f"{samples}does not divide evenly among {who}",
            field="global_batch_size",
            value=recipe.global_batch_size,
            fix=f"use {' or '.join(map(str, near))}, or a world size that divides it",
        )
    rows, given = batch // groups, recipe.micro_batch_size
    if given != "auto" and length == recipe.seq_len and rows % given:
        fits = [size for size in range(1, min(rows, MOST_SHOWN) + 1) if rows % size == 0]
        raise UserError(
            f"does not divide the {rows} samples that each of {who} has in a step",
            field="micro_batch_size",
            value=given,
            fix=f"use one of {fits}, or auto",
        )
    fitting = largest_micro_batch if given == "auto" else given * recipe.seq_len // length
    largest = min(max(fitting, 1), rows)
    micro = next(size for size in range(largest, 0, -1) if rows % size == 0)
    return Layout(world_size, micro, rows // micro, parts)
