"""How far a study has come: a table over its arms, and when all will have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tokenization.errors import UserError
from tokenization.tables import text_table
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.metrics.heartbeat import read_status
from trainer.report.runs import gather_runs
from trainer.report.status import duration

TABLE_EVERY_S = 300.0
"""How often the table is printed while nothing ends."""


@dataclass(frozen=True)
class ArmProgress:
    """How far an arm has come."""

    name: str
    state: str
    """That of its `status.json`, or `waiting`."""
    done: float = 0.0
    """Share of its tokens."""
    eta_s: float | None = None
    upstream: float | None = None
    downstream: float | None = None

    @classmethod
    def of(cls, name: str, status: Mapping[str, Any]) -> ArmProgress:
        """Read what a run's status says."""
        if not status:
            return cls(name, "waiting")
        total, metrics = status.get("total_tokens"), status["metrics"]
        done = status.get("tokens", 0) / total if total else 0.0
        live = status["state"] in ("running", "saving")
        scores = (metrics.get(names.UPSTREAM), metrics.get(names.DOWNSTREAM))
        return cls(name, status["state"], done, status.get("eta_s") if live else None, *scores)


def study_eta(arms: Sequence[ArmProgress], at_once: int, arm_s: float | None) -> float | None:
    """Estimate the seconds until all arms have ended; None if nothing is known.

    Args:
        arms: all of them.
        at_once: how many are trained at a time.
        arm_s: seconds that an arm of this study takes, as far as arms have ended.
    """
    running = [arm for arm in arms if arm.state in ("running", "saving")]
    begun = [arm.eta_s / (1 - arm.done) for arm in running if arm.eta_s is not None and arm.done < 1]
    whole = arm_s if arm_s is not None else fmean(begun) if begun else None
    ended = ("finished", "failed")
    if all(arm.state in ended for arm in arms):
        return 0.0
    if whole is None:
        return None
    left = [arm.eta_s if arm.eta_s is not None else whole * (1 - arm.done) for arm in running]
    waiting = [whole * (1 - arm.done) for arm in arms if arm not in running and arm.state not in ended]
    return max(sum(left + waiting) / at_once, *left, 0.0) if left else max(sum(waiting) / at_once, 0.0)


def progress_table(arms: Sequence[ArmProgress], eta_s: float | None) -> str:
    """Write a line per arm, and when the study ends."""
    head = ("arm", "state", "done", "upstream", "downstream", "ETA")
    rows = [
        (
            arm.name,
            arm.state,
            f"{arm.done:.0%}",
            *("-" if score is None else f"{score:.4f}" for score in (arm.upstream, arm.downstream)),
            "-" if arm.eta_s is None else duration(arm.eta_s),
        )
        for arm in arms
    ]
    ended = sum(arm.state == "finished" for arm in arms)
    end = "" if eta_s is None or ended == len(arms) else f", about {duration(eta_s)} to go"
    return f"{ended} of {len(arms)} arms finished{end}\n{text_table(head, rows, '<<>>>>')}"


class Watch:
    """Prints the table whenever an arm ends, and every few minutes."""

    def __init__(
        self, directories: Mapping[str, Path], at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`directories` are the arms' run directories by name; none print nothing."""
        self._directories, self._at_once, self._clock = directories, at_once, clock
        self._began: dict[str, float] = {}
        self._lasted: list[float] = []
        self._printed = clock()

    def started(self, name: str) -> None:
        """Note that an arm begins."""
        self._began[name] = self._clock()
        logger.info(f"{name}: begins")

    def ended(self, name: str) -> None:
        """Note that an arm has ended, and print the table."""
        self._lasted.append(self._clock() - self._began[name])
        self._print()

    def beat(self) -> None:
        """Print the table if it was not printed for a while."""
        if self._clock() - self._printed >= TABLE_EVERY_S:
            self._print()

    def _print(self) -> None:
        self._printed = self._clock()
        arms = [ArmProgress.of(name, read_status(path)) for name, path in self._directories.items()]
        if arms:
            eta = study_eta(arms, self._at_once, fmean(self._lasted) if self._lasted else None)
            logger.info(progress_table(arms, eta))


def has_diverged(run: Path) -> bool:
    """Tell whether a run failed with losses that are not finite: training it again changes nothing."""
    if read_status(run).get("state") != "failed":
        return False
    try:
        return gather_runs([run])[0].diverged_at is not None
    except UserError:
        return False
