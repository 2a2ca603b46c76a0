"""Hand an exported model to lm-eval, for tasks beside the loss."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenization.errors import UserError

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
"""Set while task files of one's own are used: they name local data, and nothing is fetched."""


def run_tasks(
    model: str, tasks: Sequence[str], tasks_path: str | None = None, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Return the numbers of lm-eval's harness by task, for a model that `rewarm export` wrote.

    With `tasks_path` only the task files (YAML) in that folder are known, and nothing is fetched. Neither the
    model nor the tasks may bring code of their own.

    Raises:
        UserError: lm-eval is not installed, the model is not an export, or a task is not known.
    """
    if importlib.util.find_spec("lm_eval") is None:
        fix = "pip install 'lm-eval[hf]>=0.4.9'"
        raise UserError("needs the package lm-eval", field="--tasks", value=",".join(tasks), fix=fix)
    if not all((Path(model) / name).is_file() for name in ("config.json", "tokenizer_config.json")):
        fix = "write one with `rewarm export RUN --out DIR`"
        raise UserError("is not a model directory with a tokenizer", field="MODEL", value=model, fix=fix)
    if tasks_path is not None:
        if not Path(tasks_path).is_dir():
            raise UserError("is not a folder", field="--tasks-path", value=tasks_path)
        os.environ |= dict.fromkeys(OFFLINE, "1")
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks_path, include_defaults=tasks_path is None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        fix = f"known are {', '.join(sorted(manager.all_tasks)[:20])}"
        raise UserError("is not a known task", field="--tasks", value=", ".join(unknown), fix=fix)
    found: dict[str, Any] = simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "auto", "trust_remote_code": False},
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        device="cuda" if torch.cuda.is_available() else "cpu",
        bootstrap_iters=0,
    )
    return {
        task: {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}
        for task, numbers in found["results"].items()
    }
