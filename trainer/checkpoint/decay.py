"""Weights over the checkpoints of a constant learning rate, whose average stands for a decay of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenization.errors import UserError
from trainer.checkpoint.history import raise_damage, scan_checkpoints
from trainer.checkpoint.manifest import Checkpoint, verify_checkpoint
from trainer.scheduler.state import RunState
from trainer.storage.run_directory import RunDirectory

_AREA: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share - share**2 / 2,
    "cosine": lambda share: share / 2 + math.sin(math.pi * share) / (2 * math.pi),
    "sqrt": lambda share: share - share**1.5 * 2 / 3,
}
"""By the name of a decay the integral of its curve, which falls from 1 to 0, from 0 to `share`: of 1 − x,
(1 + cos πx) / 2 and 1 − √x."""

DECAYS = tuple(_AREA)


def decay_weights(shape: str, tokens: Sequence[int]) -> list[float]:
    """Return the weight of each checkpoint, at these tokens, whose average emulates a decay between them.

    At a constant LR the weights move by g_j between checkpoints j − 1 and j. With the LR scaled by w_j there
    they would end at θ_0 + Σ w_j g_j, which is the average with c_0 = 1 − w_1, c_j = w_j − w_{j+1} and
    c_k = w_k (WSM, arXiv 2507.17634). w_j is the mean of the curve over the tokens of that stretch, so
    that the distances of the checkpoints may differ. The weights are at least 0 and sum to 1.

    Raises:
        ValueError: there are fewer than two checkpoints, or their tokens do not grow.
    """
    if len(tokens) < 2 or any(now <= before for before, now in itertools.pairwise(tokens)):
        raise ValueError(f"{list(tokens)} are not the growing tokens of two checkpoints or more")
    area, whole = _AREA[shape], tokens[-1] - tokens[0]
    shares = [(one - tokens[0]) / whole for one in tokens]
    scales = [(area(end) - area(start)) / (end - start) for start, end in itertools.pairwise(shares)]
    return [before - after for before, after in zip([1.0, *scales], [*scales, 0.0], strict=True)]


def decay_of(shape: str, checkpoints: Sequence[Checkpoint]) -> tuple[list[float], int]:
    """Return the weights of checkpoints of a phase for a decay, and the trained tokens that it takes."""
    tokens = [RunState.from_json(one.manifest.state).phase_trained_tokens for one in checkpoints]
    return decay_weights(shape, tokens), tokens[-1] - tokens[0]


def constant_stretch(run: Path, last: int | None = None) -> list[Checkpoint]:
    """Return the newest checkpoints of a run that one constant LR joins, oldest first, verified.

    The first one may be the end of the warm-up. `last` takes only so many of them.

    Raises:
        UserError: there are fewer than two, or than `last`; or one is damaged.
        InfrastructureError: the disk or the network failed.
    """
    good, broken = scan_checkpoints(RunDirectory(run).checkpoints)
    if not good:
        found = f" ({'; '.join(broken)})" if broken else ""
        raise UserError(f"does not hold a committed checkpoint{found}", file=run, fix="give a run directory")
    states = [RunState.from_json(one.manifest.state) for one in good]
    start, lr = len(good) - 1, states[-1].lr
    while start > 0 and _joined(states[start - 1], states[start], lr):
        start -= 1
    found_here, wanted = len(good) - start, last or 2
    if found_here < max(wanted, 2):
        what = (
            f"has {found_here} checkpoint(s) that the constant learning rate joins to the newest one, "
            f"{good[-1].path.name}, and {max(wanted, 2)} are needed"
        )
        fix = "keep more of them with checkpoint.keep_every, and merge before the learning rate falls"
        raise UserError(what, file=run, fix=fix)
    chosen = good[len(good) - last :] if last else good[start:]
    raise_damage([line for one in chosen for line in verify_checkpoint(one)])
    return chosen


def _joined(before: RunState, after: RunState, lr: float | None) -> bool:
    """Tell whether every step between two checkpoints was taken at `lr`."""
    if lr is None or before.phase != after.phase or before.phase_trained_tokens >= after.phase_trained_tokens:
        return False
    return all(math.isclose(one, lr, rel_tol=1e-9) for one in (before.next_lr, after.lr or 0.0))
