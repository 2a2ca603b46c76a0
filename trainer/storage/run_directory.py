"""The names of the files in a run directory."""

from __future__ import annotations

from pathlib import Path

from trainer.recipe.schema import Recipe

LAST_COMMITTED = "last_committed.json"
"""Beside the checkpoints' directory: the newest committed step, by which a loss of all is noticed."""


LOCK = ".lock"
"""File in the run directory; it is the lock on it that counts, which ends with the process that holds it."""


METRICS = "metrics.jsonl"
"""One JSON object a line: a start of the run (`number`, `restored_step`), or the metrics of a step."""


RESOLVED = "recipe.resolved.yaml"
"""File in the run directory: the recipe with every default filled in."""


def checkpoints_of(recipe: Recipe) -> Path:
    """Where the run's checkpoints are."""
    return recipe.directory / "checkpoints"


LINEAGE = "lineage.jsonl"
"""File in the run directory: every start, what was decided, and why."""


EXPORTED = "rewarm.json"
"""File in an exported model: the `RunState` that it was taken at, for a run that has it as its base; and
`new_rows`, where `rewarm model extend` has appended some since."""
