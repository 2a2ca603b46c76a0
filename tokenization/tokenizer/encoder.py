"""Text becomes ids: exactly the reference's, by the fastest engine that proves to agree with it.

The reference is SentencePiece on `tokenizer.model`, or `tokenizers` on `tokenizer.json` where that is all
there is. Other engines read the equivalent `tokenizer.json`, without its special tokens, so that a text that
spells `</s>` is text. An engine that disagrees on one line is not used, and it is said why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.tokenizer import hf_json
from tokenization.tokenizer.engines import (
    EncodingEngine,
    SentencePieceEngine,
    TokenizersEngine,
    _engines,
    plain_json,
    reference,
    split,
)
from tokenization.tokenizer.files import Tokenizer
from tokenization.tokenizer.hard_lines import HARD_LINES, long_lines


@dataclass(frozen=True)
class Choice:
    """The engine to use, and a line for each faster one that is not used."""

    engine: EncodingEngine
    dropped: list[str]


def choose_engine(tokenizer: Tokenizer, sample: Sequence[str], *, only: str | None = None) -> Choice:
    """The fastest engine that gives the reference's ids on `sample`, the hard lines and the long ones.

    Which is faster is known from `benchmarks/encode.py`, not timed anew: on a short sample a clock says
    little, and one job should not choose otherwise than another. `only` names the engine to take; it must
    agree as well.

    Raises:
        UserError: the engine asked for does not exist or does not agree.
    """
    engines = _engines(tokenizer)
    if only is not None and only not in engines:
        raise UserError(f"is not one of {', '.join(engines)}", field="--engine", value=only)
    truth = reference(tokenizer, threads=os.cpu_count() or 1)
    lines = [*HARD_LINES, *long_lines(), *sample]
    dropped: list[str] = []
    # The reference is the slower one, so it begins at once, beside the making of the other.
    with ThreadPoolExecutor(1) as beside:
        expected = beside.submit(truth.encode, lines)
        for name in engines if only is None else [only]:
            if name == truth.name:
                return Choice(engines[name](), dropped)
            try:
                engine = engines[name]()
                found = split(engine.encode(lines))
                wrong = _first_difference(lines, split(expected.result()), found)
                why = f"its ids differ from {truth.name}'s on {wrong[:60]!r}" if wrong is not None else None
            except Exception as error:  # an engine may fail in any way that its own library knows
                why = f"{type(error).__name__}: {error}"
            if why is None:
                return Choice(engine, dropped)
            dropped.append(f"{name} is not used: {why}")
    raise UserError(f"cannot be the engine: {dropped[0]}", field="--engine", value=only)


def disagreements(
    model: spm.ModelProto, lines: Sequence[str], held: Mapping[str, Any] | None = None
) -> list[str]:
    """The `lines` on which `tokenizers`, reading a `tokenizer.json`, is not SentencePiece with `model`.

    `held` is what the file holds; by default what `model` is written as.
    """
    read = held if held is not None else hf_json.from_model(model)
    engines = (SentencePieceEngine(model), TokenizersEngine(plain_json(read)))
    left, right = (split(engine.encode(lines)) for engine in engines)
    return [line for line, a, b in zip(lines, left, right, strict=True) if not np.array_equal(a, b)]


def _first_difference(
    lines: Sequence[str], left: Sequence[np.ndarray], right: Sequence[np.ndarray]
) -> str | None:
    for line, a, b in zip(lines, left, right, strict=True):
        if not np.array_equal(a, b):
            return line
    return None
