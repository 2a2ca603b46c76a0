"""The numpy arrays of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.mixer.permutation import Ints


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    input_ids: Ints
    """[micro_batch_size, seq_len]"""
    targets: Ints
    """[micro_batch_size, seq_len]: each position's successor; -100 (padding) is not scored."""
    source: Ints
    """[micro_batch_size]: number of the row's source in `Mixture.names`."""
    positions: Ints | None = None
    """[micro_batch_size, seq_len]: place within the document, or since the row's start; None: no mask."""

    def cut(self, part: int, parts: int) -> MicroBatch:
        """Return the rows' part number `part` of `parts` equal ones; the positions stay those of whole rows.

        Each position is beside its target already, so none is lost between two parts. Rows that do not
        divide are padded at their end: padding has no target, and nothing that has one attends to it.
        """
        width = -(-self.input_ids.shape[1] // parts)
        padding = ((0, 0), (0, width * parts - self.input_ids.shape[1]))
        own = slice(part * width, (part + 1) * width)
        return MicroBatch(
            np.pad(self.input_ids, padding)[:, own],
            np.pad(self.targets, padding, constant_values=-100)[:, own],
            self.source,
            None if self.positions is None else np.pad(self.positions, padding),
        )

    @classmethod
    def largest(cls, rows: int, seq_len: int, *, documents: bool) -> MicroBatch:
        """Make a batch that needs as much memory as any of its shape: all targets count, masks are needed."""
        ids = np.zeros((rows, seq_len), np.int64)
        positions = np.arange(seq_len) % max(1, seq_len // 2) + ids if documents else None
        return cls(ids, ids, np.zeros(rows, np.int64), positions)


def begins_within(positions: Ints | None) -> bool:
    """Tell whether a document begins within a row of these positions, [rows, length]."""
    return positions is not None and bool((np.diff(positions) != 1).any())


def document_bounds(positions: Ints) -> tuple[NDArray[np.int32], int]:
    """Return where documents begin in rows [rows, length] laid end to end, with the end; and the longest."""
    rises = np.diff(positions, axis=1, prepend=positions[:, :1]) == 1
    bounds = np.append(np.flatnonzero(~rises), positions.size).astype(np.int32)
    return bounds, int(np.diff(bounds).max())


def document_places(tokens: NDArray[np.integer[Any]], eos_id: int) -> Ints:
    """Return each token's place within its document, for rows of tokens: [rows, length], both.

    A document ends with its EOS. The one that a row begins with counts from the row's start, since what
    precedes it there cannot be seen.
    """
    rows, length = tokens.shape
    begins = np.ones((rows, length), bool)
    np.equal(tokens[:, :-1], eos_id, out=begins[:, 1:])
    first = np.flatnonzero(begins)  # where documents begin, rows end to end
    lengths = np.diff(first, append=rows * length)
    place = np.arange(rows * length)
    place -= np.repeat(first, lengths)
    return place.reshape(rows, length)
