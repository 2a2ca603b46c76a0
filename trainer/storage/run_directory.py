"""The files of a run directory: every name, and the reader of the lineage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.storage.records import Say, read_json_lines

EXPORTED = "rewarm.json"
"""File in an exported model: the `RunState` at its step, for a run that has the model as its base; and
`new_rows`, if `rewarm model extend` has appended rows since."""

LOGS = frozenset({".log", ".out", ".err"})
"""Endings of the files that batch systems and shells write beside a run."""


class RunDirectory:
    """A run directory; see `docs/run-directory.md` for what each file holds."""

    SHARED = ".shared-"
    """First letters of the files by which ranks find out that they share the directory; soon removed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.last_committed = self.path / "last_committed.json"
        """The newest committed step: it reveals the loss of the whole checkpoints directory."""
        self.identity = self.path / "identity.json"
        """What the run was at its first start: model, text, packages; see `run.identity`."""
        self.decisions = self.path / "decisions.jsonl"
        """One JSON object per decision about the replay: all that led to it; see `mixer.decisions`."""
        self.job_script = self.path / "job.sbatch"
        """The batch script that `rewarm submit` wrote."""
        self.left_out = self.path / "left_out.json"
        """Samples that the run passes over, since they made a spike; see `run.left_out`."""
        self.lineage = self.path / "lineage.jsonl"
        """One JSON object per start of the run: the decision, and the reason for it."""
        self.lock = self.path / ".lock"
        """Held with `flock` by the job that trains; the lock ends with the process that holds it."""
        self.logs = self.path / "logs"
        """The log of each rank, and what Slurm's jobs printed."""
        self.metrics = self.path / "metrics.jsonl"
        """One JSON object per line: a start of the run (`number`, `restored_step`), or a step's metrics."""
        self.probes = self.path / "probes.jsonl"
        """What the model wrote after each of the recipe's prompts, at every validation; see `run.probe`."""
        self.profile = self.path / "profile"
        """Traces of some steps, one per rank; see `machine.profile`."""
        self.recipe = self.path / "recipe.resolved.yaml"
        """The recipe with every default filled in."""
        self.status = self.path / "status.json"
        """What the run is doing, or how it ended; see `metrics.heartbeat`."""
        self.submission = self.path / "submission.json"
        """What `rewarm submit` submitted: the job, the command and the code."""
        self.tensorboard = self.path / "tensorboard"

    def rank_log(self, rank: int) -> Path:
        """Return the file that keeps what a rank logs."""
        return self.logs / f"rank-{rank:04d}.log"

    def foreign(self) -> list[str]:
        """List the names in the directory that are neither a run's, nor left by a start that was killed.

        The log of a batch job is written where the user likes, before the run begins.
        """
        written_first = (self.recipe.name, self.status.name)
        left = {self.lock.name, self.logs.name, self.status.name, f"{self.recipe.name}.tmp"}
        left |= {f"{name}.partial" for name in written_first}
        return [
            name
            for name in sorted(os.listdir(self.path))
            if name not in left
            and not name.startswith(self.SHARED)
            and not (Path(name).suffix in LOGS and (self.path / name).is_file())
        ]

    def read_lineage(self, say: Say) -> list[dict[str, Any]]:
        """Read the record of each start; damaged lines are passed over and named to `say`."""
        return read_json_lines(self.lineage, dict, say) if self.lineage.exists() else []

    def read_submission(self) -> dict[str, Any]:
        """Read what `rewarm submit` submitted; empty where nothing was, or where it cannot be read."""
        try:
            found = json.loads(self.submission.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run directories at `paths`; for a folder of runs those in it, by name."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [] if _is_run(path) or not path.is_dir() else sorted(filter(_is_run, path.iterdir()))
        found += inside or [path]
    return found


def _is_run(folder: Path) -> bool:
    run = RunDirectory(folder)
    return run.status.is_file() or run.metrics.is_file()
