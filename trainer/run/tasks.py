"""Tasks of lm-eval's harness while a run trains: rank 0 asks, and all ranks answer with the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import transformers

from tokenization.errors import UserError
from tokenization.tokenizer.files import open_tokenizer
from trainer.evaluation.answers import AnsweringModel, Row, Sharing, answer_rows, continue_rows
from trainer.evaluation.harness import harness_model
from trainer.evaluation.tasks import answer_tasks
from trainer.machine import collectives
from trainer.machine.log_lines import logger
from trainer.metrics import names
from trainer.model.tokenizer import write_tokenizer
from trainer.plan.make import Plan
from trainer.run.validation import Stopped, ValidationSets


class TaskEvaluation:
    """AnsweringModel the tasks of a recipe. Only rank 0 needs their files; all ranks make the same calls."""

    def __init__(self, plan: Plan, rank: int) -> None:
        """`plan` is of a recipe with `validation.tasks`."""
        self._plan, self._recipe, self._rank = plan, plan.recipe, rank
        self._context = int(plan.model_config.get("max_position_embeddings") or plan.recipe.seq_len)

    def measure(self, sets: ValidationSets, step: int) -> dict[str, float] | None:
        """Return the metrics of all tasks, or None if a rank was asked to stop meanwhile.

        What cannot be answered later on is a warning, and no numbers.

        Raises:
            UserError: what the base cannot be asked: a task's data is not there, or it runs code of its own.
        """
        asked = _Asked(sets, f"answering tasks after step {step}", self._recipe.seq_len)
        try:
            numbers, why = self._ask(asked) if self._rank == 0 else asked.serve()
        except Stopped:
            return None
        if why is not None and step == 0:
            fix = "try `rewarm eval MODEL --tasks …` on a machine of this run, or leave validation.tasks out"
            raise UserError(f"cannot be answered ({why})", field="validation.tasks", fix=fix)
        if why is not None:
            logger.warning(f"step {step}: validation.tasks: they cannot be answered ({why})")
        return numbers

    def _ask(self, asked: _Asked) -> tuple[dict[str, float], str | None]:
        """Let lm-eval ask on rank 0; the numbers, and why there are none, which all ranks are told."""
        assert self._recipe.validation.tasks is not None
        found: dict[str, dict[str, float]] = {}
        why = None
        try:
            model = harness_model(self._tokenizer, self._context, asked.answer, asked.go_on)
            found = answer_tasks(model, self._recipe.validation.tasks)
        except Exception as error:  # lm-eval's own, and those of tasks and of what reads their data
            if asked.among_ranks:
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        numbers = {
            names.task_metric(task, key): value
            for task, own in found.items()
            for key, value in own.items()
            if "," in key  # a metric and its filter; others count examples
        }
        return asked.end(numbers, why)

    @cached_property
    def _tokenizer(self) -> Any:
        """The run's tokenizer as an export's users load it: with the special tokens that it adds."""
        with tempfile.TemporaryDirectory(prefix="rewarm-tokenizer-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(self._plan.model_config), encoding="utf-8")
            written = write_tokenizer(open_tokenizer(self._recipe.model.tokenizer), Path(folder))
            return getattr(transformers, written.loader).from_pretrained(folder)


class _Asked:
    """What is asked on rank 0 goes to all ranks, each of which computes its share."""

    def __init__(self, sets: ValidationSets, doing: str, seq_len: int) -> None:
        self._model = cast(AnsweringModel, sets.scorer)
        self._tokens = sets.micro_batch_size * seq_len
        look = sets.looking(doing)
        self._sharing = Sharing(sets.world.rank, sets.world.world_size, sets.total, look)
        self.among_ranks = False
        """Whether the ranks are computing, so that an error of one of them cannot be told to the others."""

    def answer(self, rows: Sequence[Row], greedy: bool) -> np.ndarray:
        """Answer on all ranks, from rank 0; see `answer_rows`."""
        collectives.broadcast(("answer", rows, greedy))
        return self._answer(rows, greedy)

    def go_on(self, rows: Sequence[Sequence[int]], more: int) -> np.ndarray:
        """Continue rows on all ranks, from rank 0; see `continue_rows`."""
        collectives.broadcast(("continue", rows, more))
        return self._continue(rows, more)

    def end(self, numbers: dict[str, float], why: str | None) -> tuple[dict[str, float], str | None]:
        """Tell all ranks what came of it, from rank 0."""
        collectives.broadcast(("end", numbers, why))
        return numbers, why

    def serve(self) -> tuple[dict[str, float], str | None]:
        """Compute this rank's share of what rank 0 is asked, until it has all numbers."""
        while True:
            kind, first, second = collectives.broadcast(None)
            if kind == "end":
                return first, second
            (self._answer if kind == "answer" else self._continue)(first, second)

    def _answer(self, rows: Sequence[Row], greedy: bool) -> np.ndarray:
        self.among_ranks = True
        found = answer_rows(self._model, rows, self._tokens, greedy=greedy, sharing=self._sharing)
        self.among_ranks = False
        return found

    def _continue(self, rows: Sequence[Sequence[int]], more: int) -> np.ndarray:
        self.among_ranks = True
        found = continue_rows(self._model, rows, more, self._tokens, sharing=self._sharing)
        self.among_ranks = False
        return found
