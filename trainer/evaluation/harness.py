"""A model as lm-eval's harness asks it, whoever computes the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.answers import Row

WRITTEN_AT_ONCE = 16
"""Tokens that are written between two looks for the end of a text."""

MOST_WRITTEN = 256
"""Tokens that a text has at most where its task does not say so, as in lm-eval's own model."""

Answer = Callable[[Sequence[Row], bool], np.ndarray]
"""Of rows, and whether it matters that they are what the model would write: as `answers.answer_rows`."""

Continue = Callable[[Sequence[Sequence[int]], int], np.ndarray]
"""Of rows and a number of tokens: as `answers.continue_rows`."""


@dataclass
class _Writing:
    """A text that the model writes."""

    ids: list[int]
    given: int
    """Tokens that it was given."""
    until: list[str]
    most: int
    """Tokens that it may add."""

    @property
    def left(self) -> int:
        return self.given + self.most - len(self.ids)


class HarnessModel:
    """What lm-eval's `TemplateLM` leaves to be defined; the encoding is that of lm-eval's own `hf` model.

    So a run's numbers are those that `rewarm eval --tasks` gives for its export.
    """

    def __init__(self, tokenizer: Any, context: int, answer: Answer, go_on: Continue) -> None:
        """Take transformers' tokenizer of the model, and the most tokens that the model sees at once."""
        super().__init__()
        self.tokenizer, self._context, self._answer, self._continue = tokenizer, context, answer, go_on

    @property
    def eot_token_id(self) -> int:
        """The token at the end of a document."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        """The most tokens that the model sees at once."""
        return self._context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text, with the special tokens that the tokenizer adds unless it has them already."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **chosen))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether the model would write it."""
        # The base encodes the pairs; its progress bar would stand among the lines of the run.
        return list(super().loglikelihood(requests, disable_tqdm=True))  # type: ignore[misc]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        rows = [
            Row([*context, *continuation][-self._context - 1 :], len(continuation))
            for _, context, continuation in requests
        ]
        return [(-float(nats), bool(greedy)) for nats, greedy in self._answer(rows, True)]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each whole text, in windows that do not overlap."""
        from lm_eval import utils

        rows, owners = [], []
        for place, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._context,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                rows.append(Row([*context, *continuation], len(continuation)))
                owners.append(place)
        found = np.zeros(len(requests))
        np.add.at(found, owners, -self._answer(rows, False)[:, 0])
        return [float(one) for one in found]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Return what the model writes after each context, the most likely token each time."""
        begun = [self._begin(*request.args) for request in requests]
        texts = [""] * len(begun)
        going = list(range(len(begun)))
        while going:
            more = min(WRITTEN_AT_ONCE, *(begun[place].left for place in going))
            added = self._continue([begun[place].ids for place in going], more)
            for place, ids in zip(going, added, strict=True):
                begun[place].ids += [int(one) for one in ids]
            ends = {place: self._end(begun[place]) for place in going}
            texts = [ends[place][0] if place in ends else text for place, text in enumerate(texts)]
            going = [place for place in going if not ends[place][1]]
        return texts

    def _begin(self, context: str, settings: dict[str, Any]) -> _Writing:
        until = settings.get("until") or []
        most = int(settings.get("max_gen_toks") or MOST_WRITTEN)
        if most >= self._context:
            raise ValueError(
                f"a task lets {most} tokens be written, and the model's context is {self._context}"
            )
        ids = self.tok_encode(context)[most - self._context :]
        return _Writing(ids, len(ids), [until] if isinstance(until, str) else list(until), most)

    def _end(self, writing: _Writing) -> tuple[str, bool]:
        """Return the text so far, up to where it ends, and whether it has ended."""
        ids = writing.ids[writing.given :]
        ended = self.eot_token_id in ids
        ids = ids[: ids.index(self.eot_token_id)] if ended else ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in filter(None, writing.until):
            before, found, _ = text.partition(stop)
            text, ended = before, ended or bool(found)
        return text, ended or writing.left == 0


def harness_model(tokenizer: Any, context: int, answer: Answer, go_on: Continue) -> Any:
    """Make a model that `simple_evaluate` takes; needs the package lm-eval."""
    from lm_eval.api.model import TemplateLM

    kind: Any = type("RewarmModel", (HarnessModel, TemplateLM), {})
    return kind(tokenizer, context, answer, go_on)
