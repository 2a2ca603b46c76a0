"""What each command of `rewarm` does: calls a lower room, and says what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from trainer import recipe as recipes
from trainer.errors import UserError
from trainer.launcher import world


def answer(asked: argparse.Namespace, data: Any, text: str) -> None:
    """The answer as JSON or as text, on standard output."""
    print(json.dumps(data, ensure_ascii=False) if asked.json else text)


def train_run(asked: argparse.Namespace) -> int:
    """`rewarm train`: everything that can fail cheaply fails before the ranks are joined."""
    from trainer.plan import prepare

    here = world()
    plan = prepare(recipes.load(asked.recipe, asked.overrides), here.world_size)
    if here.rank == 0:
        for line in [*plan.broken, *plan.decision.render().splitlines()]:
            print(f"rewarm: {line}", file=sys.stderr)
    if plan.decision.kind == "refuse":
        return UserError.exit_code
    if plan.decision.kind == "finished":
        return 0
    from trainer.run import run

    return run(plan, here)
