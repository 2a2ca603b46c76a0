"""Prompts whose continuations show, beside the losses, what the model writes by now."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tokenization.tokenizer.decoder import decoder_of
from tokenization.tokenizer.files import Tokenizer
from trainer.machine.log_lines import logger
from trainer.plan.tokenizer import prompt_ids
from trainer.recipe.schema import Recipe
from trainer.storage.records import append_record
from trainer.storage.run_directory import RunDirectory


class Continues(Protocol):
    """The engine."""

    def next_tokens(self, ids: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the most likely successor of the token at a place in each row."""
        ...


class Prompts:
    """The prompts of a recipe, as ids; all ranks hold them, and rank 0 shows what comes of them."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, rank: int) -> None:
        """`recipe` has a `probe`."""
        assert recipe.probe is not None
        self._texts, self._more = recipe.probe.prompts, recipe.probe.max_tokens
        self._ids = prompt_ids(self._texts, tokenizer)
        self._eos, self._decode = tokenizer.eos_id, decoder_of(tokenizer)
        self._rank, self._file = rank, RunDirectory(recipe.directory).probes

    def show(self, engine: Continues, step: int, tokens: int) -> None:
        """Continue every prompt greedily; log the texts and append them to `probes.jsonl`."""
        found = self.continuations(engine)
        if self._rank != 0:
            return
        for prompt, text in zip(self._texts, found, strict=True):
            logger.info(f"step {step}: {prompt!r} → {text!r}")
            record = {"step": step, "tokens": tokens, "prompt": prompt, "text": text}
            try:
                append_record(self._file, record, logger.warning)
            except OSError as error:  # a full disk is noticed by the metrics, which decide what follows
                logger.warning(f"{self._file}: {error.strerror or error}")

    def continuations(self, engine: Continues) -> list[str]:
        """Continue every prompt; all ranks make equally many forward passes, whatever comes of them."""
        lengths = np.array([len(ids) for ids in self._ids])
        rows = np.zeros((len(lengths), int(lengths.max()) + self._more), np.int64)
        for row, ids in zip(rows, self._ids, strict=True):
            row[: len(ids)] = ids
        each = np.arange(len(rows))
        for done in range(self._more):
            # What is behind a place does not count for it, so that rows may be of different lengths.
            rows[each, lengths + done] = engine.next_tokens(rows, lengths + done - 1)
        return [
            self._until_the_end(row[length : length + self._more].tolist())
            for row, length in zip(rows, lengths, strict=True)
        ]

    def _until_the_end(self, ids: list[int]) -> str:
        return self._decode(ids[: ids.index(self._eos)] if self._eos in ids else ids)
