"""Tasks of lm-eval's harness beside the loss: for an exported model, and for one that is being trained."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.errors import UserError
from trainer.recipe.validation import Tasks

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
"""Set while task files of one's own are used: they name local data, and nothing is fetched."""

RESAMPLED = 100
"""Samples with replacement for the standard error of what is not a mean; that of a mean needs none."""

Numbers = dict[str, dict[str, float]]
"""lm-eval's numbers by task: `acc,none` and `acc_stderr,none`."""


def check_tasks(tasks: Tasks | None) -> None:
    """Check that a recipe's tasks can be answered: lm-eval is installed, and it knows them.

    Raises:
        UserError: otherwise.
    """
    if tasks is not None:
        _known(tuple(tasks.names), tasks.path, "validation.tasks.names", "validation.tasks.path")


def run_tasks(
    model: str, tasks: Sequence[str], tasks_path: str | None = None, limit: int | None = None
) -> Numbers:
    """Return the numbers of lm-eval's harness by task, for a model that `rewarm export` wrote.

    With `tasks_path` only the task files (YAML) in that folder are known, and nothing is fetched. The model
    may not bring code of its own; task files may name functions in their folder.

    Raises:
        UserError: lm-eval is not installed, the model is not an export, or a task is not known.
    """
    manager = check_run_tasks(model, tasks, tasks_path)
    import torch

    return _evaluate(
        manager,
        tasks,
        limit,
        model="hf",
        model_args={"pretrained": model, "dtype": "auto", "trust_remote_code": False},
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def check_run_tasks(model: str, tasks: Sequence[str], tasks_path: str | None) -> Any:
    """Check what `run_tasks` needs, and return lm-eval's task manager.

    Raises:
        UserError: as `run_tasks`.
    """
    manager = _known(tuple(tasks), tasks_path, "--tasks", "--tasks-path")
    if not all((Path(model) / name).is_file() for name in ("config.json", "tokenizer_config.json")):
        fix = "write one with `rewarm export RUN --out DIR`"
        raise UserError("is not a model directory with a tokenizer", field="MODEL", value=model, fix=fix)
    return manager


def answer_tasks(model: Any, tasks: Tasks) -> Numbers:
    """Return the numbers of a recipe's tasks for a model that `harness.harness_model` made.

    Raises:
        Exception: whatever lm-eval raises, or the model.
    """
    manager = _known(tuple(tasks.names), tasks.path, "validation.tasks.names", "validation.tasks.path")
    # Its progress bars and its remarks on task files would stand among the lines of the run, each time.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        return _evaluate(manager, tasks.names, tasks.limit, model=model)


def _known(names: tuple[str, ...], path: str | None, names_field: str, path_field: str) -> Any:
    """Return lm-eval's task manager, which knows `names`.

    Raises:
        UserError: lm-eval is not installed, `path` is not a folder, or a task is not known.
    """
    if importlib.util.find_spec("lm_eval") is None:
        fix = "pip install 'lm-eval[hf]>=0.4.9'"
        raise UserError("needs the package lm-eval", field=names_field, value=",".join(names), fix=fix)
    if path is not None:
        if not Path(path).is_dir():
            fix = "give the folder of the task files (YAML)"
            raise UserError("is not a folder", field=path_field, value=path, fix=fix)
        os.environ |= dict.fromkeys(OFFLINE, "1")
    manager = task_manager(path)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        fix = f"known are {', '.join(sorted(manager.all_tasks)[:20])}"
        raise UserError("is not a known task", field=names_field, value=", ".join(unknown), fix=fix)
    return manager


@lru_cache(maxsize=1)  # a plan is made several times in a run, and lm-eval has thousands of task files
def task_manager(path: str | None) -> Any:
    """Return lm-eval's task manager, which knows the task files in `path`, or lm-eval's own."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=path, include_defaults=path is None)


def _evaluate(manager: Any, tasks: Sequence[str], limit: int | None, **model: Any) -> Numbers:
    from lm_eval import simple_evaluate

    evaluator: Any = sys.modules.get("lm_eval.evaluator")
    if evaluator is not None:
        # It asks git for a commit, and in a folder that is not a repository git writes "fatal" into the log.
        evaluator.get_git_commit_hash = lambda: None
    # lm-eval would start a process for each core of the machine.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with _random_state_kept():
        found: dict[str, Any] = simple_evaluate(
            **model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=RESAMPLED,
            log_samples=False,
            torch_random_seed=None,
        )
    return {
        task: {
            name: float(value)
            for name, value in numbers.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for task, numbers in found["results"].items()
    }


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Set Python's and numpy's generators back, which lm-eval seeds so that it draws the same examples."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
