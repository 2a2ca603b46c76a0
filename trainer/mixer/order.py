"""The order in which a phase reads each source, and where it goes on after a phase with another `seq_len`.

Uses of a source are counted in samples of the last phase that took from it. Its order is made of windows:
stretches of its text that are permuted as wholes. A window is `block` samples with order `blocks`; with order
`shuffled` it is the longest sample that any phase takes from the source, so one sample where all phases have
the same `seq_len`. Windows lie at the same tokens whatever the `seq_len`, and are used up one after another.
So what a phase has read of an epoch is a number of whole windows and a part of one; the next phase goes on
with the first whole window, and no token comes twice in an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokenization.errors import UserError
from trainer.mixer.description import PastPhase
from trainer.mixer.permutation import Ints, Words, permute, permute_blocks, subkeys
from trainer.recipe.schema import Recipe, Source

_UNLIMITED = 2**62


@dataclass(frozen=True)
class PhaseOrder:
    """How a phase reads the sources: all columns are [sources], in the recipe's order."""

    seq_len: int
    orders: tuple[str, ...]
    lengths: Ints
    """Tokens of the samples in which uses are counted: those of the last phase so far that takes from it."""
    samples: Ints
    """Samples of an epoch."""
    windows: Ints
    """Samples of a window."""
    offsets: Ints
    """First sample of order `sequential`."""
    limits: Ints
    """Uses that `max_epochs` allows."""

    def locate(self, source: Ints, use: Ints, keys: Words) -> tuple[Ints, Ints]:
        """Find the sample and the epoch of the `use`-th use (from 0) of each source: [n] each."""
        sizes = self.samples[source]
        epoch, place = np.divmod(use, sizes)
        keys = subkeys(keys[source], epoch)
        index = np.empty_like(place)
        for order, members in self._members.items():
            at = np.flatnonzero(members[source])
            if order == "sequential":
                index[at] = (place[at] + self.offsets[source[at]]) % sizes[at]
            elif order == "blocks":
                index[at] = permute_blocks(place[at], sizes[at], keys[at], self.windows[source[at]])
            else:
                index[at] = permute(place[at], sizes[at], keys[at])
        return index, epoch

    @cached_property
    def _members(self) -> dict[str, NDArray[np.bool_]]:
        """Which sources are read by each way; windows of one sample are permuted as samples are."""
        ways = [
            "blocks" if order == "shuffled" and window > 1 else order
            for order, window in zip(self.orders, self.windows.tolist(), strict=True)
        ]
        return {way: np.array([one == way for one in ways]) for way in sorted(set(ways))}

    def like(self, other: PhaseOrder) -> NDArray[np.bool_]:
        """Tell for each source whether uses that another phase counts are uses of this one: [sources]."""
        same: NDArray[np.bool_] = (self.lengths == other.lengths) & (self.windows == other.windows)
        return same

    def after(self, other: PhaseOrder, used: Ints) -> Ints:
        """Count the uses from which this phase goes on, from those that a phase before it ended with."""
        same = self.like(other).tolist()
        uses = [use if same[at] else self._after(other, at, use) for at, use in enumerate(used.tolist())]
        return np.array(uses, np.int64)

    def ends_epoch(self, other: PhaseOrder, at: int) -> bool:
        """Tell whether a phase before read a source, by its number, in windows of another size."""
        windows = [int(one.windows[at] * one.lengths[at]) for one in (self, other)]
        return self.orders[at] != "sequential" and windows[0] != windows[1]

    def _after(self, other: PhaseOrder, at: int, use: int) -> int:
        samples, window = int(self.samples[at]), int(self.windows[at])
        epoch, place = divmod(use, int(other.samples[at]))
        if place == 0:
            return epoch * samples
        if self.orders[at] == "sequential":
            return epoch * samples + self._after_in_sequence(other, at, place)
        if self.ends_epoch(other, at):
            return (epoch + 1) * samples
        return epoch * samples + min(-(-place // int(other.windows[at])) * window, samples)

    def _after_in_sequence(self, other: PhaseOrder, at: int, place: int) -> int:
        """Count the samples of an epoch of order `sequential` that begin before another phase's place."""
        first, left = int(self.offsets[at]), int(other.samples[at] - other.offsets[at])
        length, before = int(self.lengths[at]), int(other.lengths[at])
        if place <= left:  # it has not come to the end of the text, where it goes on with the beginning
            ahead = -(-((place + int(other.offsets[at])) * before) // length) - first
            return min(ahead, int(self.samples[at]) - first)
        again = -(-((place - left) * before) // length)
        return min(int(self.samples[at]) - first + again, int(self.samples[at]))


def phase_orders(
    recipe: Recipe,
    samples: Mapping[str, int],
    tokens: Mapping[str, int],
    used: Sequence[Sequence[bool]],
    past: Sequence[PastPhase],
) -> list[PhaseOrder]:
    """Return the order of every phase.

    Args:
        recipe: the whole run.
        samples: those of each source, of the recipe's `seq_len`.
        tokens: those of each source.
        used: `[phases][sources]`, whether the phase takes from the source.
        past: the phases that have begun; they keep the windows that they began with.
    """
    columns = [
        _columns(recipe, name, source, samples[name], tokens[name], [row[number] for row in used], past)
        for number, (name, source) in enumerate(recipe.sources.items())
    ]
    orders = tuple(source.order for source in recipe.sources.values())
    return [
        PhaseOrder(
            recipe.seq_len_of(phase),
            orders,
            *(np.array(column, np.int64) for column in zip(*(one[phase] for one in columns), strict=True)),
        )
        for phase in range(len(recipe.phases))
    ]


def _columns(
    recipe: Recipe,
    name: str,
    source: Source,
    samples: int,
    tokens: int,
    used: Sequence[bool],
    past: Sequence[PastPhase],
) -> list[tuple[int, int, int, int, int]]:
    """Return length, samples, window, offset and limit of a source in each phase.

    A phase keeps the windows of the phase before if its samples divide them, so that the epoch goes on.
    """
    found = []
    length, window = recipe.seq_len, 0
    for phase in range(len(recipe.phases)):
        recorded = past[phase].data.sources.get(name) if phase < len(past) else None
        if recorded is not None:
            length, window = past[phase].data.seq_len, (recorded.block or 1) * past[phase].data.seq_len
        elif used[phase]:
            length = recipe.seq_len_of(phase)
            if source.order == "blocks":
                window = source.block * recipe.seq_len
            elif window == 0 or window % length:
                later = range(phase, len(used))
                window = max(recipe.seq_len_of(one) for one in later if used[one])
        count = samples if length == recipe.seq_len else max(0, (tokens - 1) // length)
        width = 1 if source.order == "sequential" else max(1, window // length)
        cap = source.max_epochs
        limit = _UNLIMITED if cap is None else min(int(cap * count), _UNLIMITED)
        found.append((length, count, width, source.offset * recipe.seq_len // length, limit))
    return found


def order_problems(
    recipe: Recipe, tokens: Mapping[str, int], used: Sequence[Sequence[bool]], begun: int
) -> Iterator[UserError]:
    """Find sources from which a phase with another `seq_len` than the recipe's cannot take.

    `used` is that of `phase_orders`; the first `begun` phases have begun.
    """
    for phase in range(begun, len(recipe.phases)):
        length = recipe.seq_len_of(phase)
        for taken, (name, source) in zip(used[phase], recipe.sources.items(), strict=True):
            if not taken or length == recipe.seq_len:
                continue
            if tokens[name] <= length:
                what = f"is not below the {tokens[name]:,} tokens of source {name}"
                fix = "take from other sources in this phase"
                yield UserError(what, field=f"phases.{phase}.seq_len", value=length, fix=fix)
            field, count = ("block", source.block) if source.order == "blocks" else ("offset", source.offset)
            if (count * recipe.seq_len) % length:
                what = f"is not a whole number of samples of phases.{phase}.seq_len, {length:,} tokens"
                fix = f"use a multiple of {length // recipe.seq_len}: it counts samples of {recipe.seq_len:,}"
                yield UserError(what, field=f"sources.{name}.{field}", value=count, fix=fix)
