"""What tasks need of a model: the likelihood of given tokens, and what it writes itself, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trainer.mixer.batch import MicroBatch

if TYPE_CHECKING:
    import torch

Total = Callable[["torch.Tensor"], "torch.Tensor"]

MOST_PLACES = 1024
"""Scored tokens of a forward pass whose logits are held at once."""

ROUNDING = 16
"""Rows are padded to a multiple of so many tokens: compiled layers see fewer shapes."""


class Row(NamedTuple):
    """A text, of which the last tokens are scored."""

    ids: Sequence[int]
    scored: int
    """Fewer than there are `ids`."""


class AnsweringModel(Protocol):
    """The engine during a run; all ranks make the same calls, as sharded weights require."""

    def answers(
        self, ids: np.ndarray, targets: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely successor at each of a row's places, and the nats of the target there."""
        ...

    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nats and the target tokens of each row."""
        ...


class Sharing(NamedTuple):
    """How the ranks share rows."""

    rank: int = 0
    world_size: int = 1
    total: Total = lambda alone: alone
    """Adds up over the ranks."""
    look: Callable[[], None] = lambda: None
    """Called on every rank before each forward pass."""


def answer_rows(
    model: AnsweringModel, rows: Sequence[Row], tokens: int, *, greedy: bool, sharing: Sharing | None = None
) -> npt.NDArray[np.float64]:
    """Return for each row the nats of its scored tokens, and whether the model would write them itself.

    A forward pass takes at most `tokens` tokens, or a single row. Without `greedy` the second number is 0,
    and rows may have any number of scored tokens. All ranks make equally many forward passes, and the result,
    [rows, 2], does not depend on their number.
    """
    import torch

    sharing = sharing or Sharing()
    found = torch.zeros(len(rows), 2, dtype=torch.float64)
    for numbers in _turns(
        [len(row.ids) - 1 for row in rows], tokens, _places(rows) if greedy else 1, sharing
    ):
        inputs, targets = _padded([rows[number] for number in numbers] or [Row((0, 0), 1)])
        if not greedy:
            nats, _ = model.score(MicroBatch(inputs, targets, np.zeros(len(inputs), np.int64)))
            found[numbers, 0] = nats[: len(numbers)].double().cpu()
            continue
        places = _scored_places(targets)
        best, each = model.answers(inputs, np.maximum(targets, 0), places)
        goals = np.take_along_axis(targets, places, axis=1)
        for place, number in enumerate(numbers):
            own = slice(0, rows[number].scored)  # the places after them repeat the first one
            found[number, 0] = float(each[place, own].sum())
            found[number, 1] = float((best[place, own] == goals[place, own]).all())
    return np.asarray(sharing.total(found).cpu().numpy())


def continue_rows(
    model: AnsweringModel,
    rows: Sequence[Sequence[int]],
    more: int,
    tokens: int,
    *,
    sharing: Sharing | None = None,
) -> npt.NDArray[np.int64]:
    """Return the `more` most likely tokens after each row, [rows, more]: a forward pass for each token."""
    import torch

    sharing = sharing or Sharing()
    found = torch.zeros(len(rows), more, dtype=torch.float64)  # holds any token id exactly
    for numbers in _turns([len(row) + more for row in rows], tokens, 1, sharing):
        own = [rows[number] for number in numbers] or [(0,)]
        lengths, each = np.array([len(row) for row in own]), np.arange(len(own))
        ids = np.zeros((len(own), _rounded(int(lengths.max()) + more)), np.int64)
        for line, row in zip(ids, own, strict=True):
            line[: len(row)] = row
        for done in range(more):
            if done:
                sharing.look()
            best, _ = model.answers(ids, ids, (lengths + done - 1)[:, None])
            ids[each, lengths + done] = best[:, 0]
        for place, number in enumerate(numbers):
            written = ids[place, lengths[place] : lengths[place] + more]
            found[number] = torch.from_numpy(written).double()
    return np.asarray(sharing.total(found).cpu().numpy()).astype(np.int64)


def _turns(lengths: Sequence[int], tokens: int, places: int, sharing: Sharing) -> Iterator[list[int]]:
    """Yield this rank's rows of each forward pass, the longest first; nothing where it has none to do."""
    left = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches: list[list[int]] = []
    while left:
        count = max(1, min(tokens // _rounded(lengths[left[0]]), MOST_PLACES // places))
        batches.append(left[:count])
        left = left[count:]
    batches += [[]] * (-len(batches) % sharing.world_size)
    for own in batches[sharing.rank :: sharing.world_size]:
        sharing.look()
        yield own


def _places(rows: Sequence[Row]) -> int:
    return max((row.scored for row in rows), default=1)


def _rounded(length: int) -> int:
    return -(-max(1, length) // ROUNDING) * ROUNDING


def _padded(rows: Sequence[Row]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return inputs and targets, [rows, length]; what is not scored has the target -100."""
    inputs = np.zeros((len(rows), _rounded(max(len(row.ids) for row in rows) - 1)), np.int64)
    targets = np.full_like(inputs, -100)
    for line, goals, row in zip(inputs, targets, rows, strict=True):
        end = len(row.ids) - 1
        line[:end] = row.ids[:-1]
        goals[end - row.scored : end] = row.ids[-row.scored :]
    return inputs, targets


def _scored_places(targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each row is scored, [rows, most places]; rows with fewer places repeat their first one."""
    own = [np.flatnonzero(row >= 0) for row in targets]
    places = np.zeros((len(own), max(map(len, own))), np.int64)
    for line, found in zip(places, own, strict=True):
        line[:] = found[0]
        line[: len(found)] = found
    return places
