"""Text becomes ids: exactly the reference's, by the fastest engine that proves to agree with it.

The reference is SentencePiece on `tokenizer.model`, or `tokenizers` on `tokenizer.json` where that is all
there is, or where added tokens are to be found in texts. It is proved itself: the whole added vocabulary must
have the ids that the files give it. Other engines read the equivalent `tokenizer.json`. A text that spells a
special token such as `</s>` is text. An engine that disagrees on one line is not used, and it is said why.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.tokenizer import hf_json
from tokenization.tokenizer.added import AddedToken
from tokenization.tokenizer.engines import (
    EncodingEngine,
    GigatokenEngine,
    SentencePieceEngine,
    TokenizersEngine,
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
    lines = [*HARD_LINES, *long_lines(), *added_lines(tokenizer), *sample]
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
                why = next(_wrong_ids(tokenizer, engine), why)
            except Exception as error:  # an engine may fail in any way that its own library knows
                why = readable(error)
            if why is None:
                return Choice(engine, dropped)
            dropped.append(f"{name} is not used: {why}")
    raise UserError(f"cannot be the engine: {dropped[0]}", field="--engine", value=only)


def create_engine(tokenizer: Tokenizer, name: str) -> EncodingEngine:
    """The engine `name`, whether it agrees or not."""
    return _engines(tokenizer)[name]()


def reference(tokenizer: Tokenizer, threads: int = 1) -> EncodingEngine:
    """The engine whose ids are right by definition; SentencePiece on so many `threads`.

    Raises:
        UserError: its own library cannot read the tokenizer, or does not give an added token its id.
    """
    _refuse_inexact(tokenizer)
    try:
        if tokenizer.model is not None and not _found_in_texts(tokenizer):
            return SentencePieceEngine(tokenizer.model, threads)
        engine = TokenizersEngine(_same_json(tokenizer))
    except Exception as error:  # SentencePiece raises RuntimeError, tokenizers Exception itself
        raise UserError(f"cannot be loaded ({error})", file=tokenizer.path, fix="is it damaged?") from None
    if (wrong := next(_wrong_ids(tokenizer, engine), None)) is not None:
        fix = "give added tokens the ids that follow on those of the vocabulary, without a gap"
        raise UserError(f"cannot be used: {wrong}", file=tokenizer.path, fix=fix)
    return engine


def disagreements(
    model: spm.ModelProto, lines: Sequence[str], held: Mapping[str, Any] | None = None
) -> list[str]:
    """The `lines` on which `tokenizers`, reading a `tokenizer.json`, is not SentencePiece with `model`.

    `held` is what the file holds; by default what `model` is written as.
    """
    read = held if held is not None else hf_json.from_model(model)
    engines = (SentencePieceEngine(model), TokenizersEngine(_bare_json(read)))
    left, right = (split(engine.encode(lines)) for engine in engines)
    return [line for line, a, b in zip(lines, left, right, strict=True) if not np.array_equal(a, b)]


def readable(error: BaseException) -> str:
    """Why an engine failed, in words: without the place in its library's source."""
    text = " ".join(re.split(r"\bLocation:|\bStack backtrace|, src/", str(error))[0].split())
    if byte := re.search(r"no single-byte vocab entry for byte (0x[0-9a-fA-F]{2})", text):
        return f"it needs a piece for every byte, and the vocabulary has none for {byte[1]}"
    return f"{type(error).__name__}: {text}"


def added_lines(tokenizer: Tokenizer) -> list[str]:
    """Lines that spell each added token, alone and within a text."""
    return [
        line
        for token in tokenizer.added_vocabulary
        for line in (token.content, f"a{token.content}b", f"中 {token.content} 文 {token.content}")
    ]


def _engines(tokenizer: Tokenizer) -> dict[str, Callable[[], EncodingEngine]]:
    """How to make each engine that can serve the tokenizer, the fastest first."""
    model = tokenizer.model
    slow: dict[str, Callable[[], EncodingEngine]] = {}
    if model is not None and not _found_in_texts(tokenizer):
        slow = {"sentencepiece": lambda: SentencePieceEngine(model)}
        if model.trainer_spec.model_type != spm.TrainerSpec.BPE:
            return slow
    same = _same_json(tokenizer)
    fast: dict[str, Callable[[], EncodingEngine]] = {
        "gigatoken": lambda: GigatokenEngine(_without_special(same))
    }
    return fast | slow | {"tokenizers": lambda: TokenizersEngine(same)}


def _refuse_inexact(tokenizer: Tokenizer) -> None:
    """Refuse tokens found in texts, which SentencePiece does not know, where no `tokenizer.json` equals it.

    Raises:
        UserError: `tokenizer.model` is not one that `tokenizers` encodes alike.
    """
    if tokenizer.model is None or not (found := _found_in_texts(tokenizer)):
        return
    if tokenizer.model.trainer_spec.model_type != spm.TrainerSpec.BPE or disagreements(
        tokenizer.model, HARD_LINES
    ):
        raise UserError(
            f"does not have the added token {found[0].content!r}, which is to be found in texts, and no"
            " tokenizer.json equals it",
            file=tokenizer.path,
            fix='mark it as "special": true in tokenizer_config.json, or leave it out',
        )


def _found_in_texts(tokenizer: Tokenizer) -> list[AddedToken]:
    return [token for token in tokenizer.added_vocabulary if not token.special]


def _wrong_ids(tokenizer: Tokenizer, engine: EncodingEngine) -> Iterator[str]:
    """What is wrong with the ids that an engine gives the added vocabulary, against those in its files."""
    if isinstance(engine, TokenizersEngine):
        for token in tokenizer.added_vocabulary:
            if (given := engine.id_of(token.content)) != token.id:
                yield f"{engine.name} gives {token.content!r} the id {given}, and its file {token.id}"
    found = [token for token in _found_in_texts(tokenizer) if not token.flags[0]]
    if not found:
        return
    for token, row in zip(found, split(engine.encode([token.content for token in found])), strict=True):
        if row.tolist() != [token.id]:
            yield f"{engine.name} makes {row.tolist()} of {token.content!r}, and the file gives it {token.id}"


def _same_json(tokenizer: Tokenizer) -> str:
    """The `tokenizer.json` that gives the tokenizer's ids, added tokens included."""
    held = hf_json.from_model(tokenizer.model) if tokenizer.model is not None else dict(tokenizer.json or {})
    beside = [token.to_json() for token in tokenizer.added]
    return _bare_json({**held, "added_tokens": [*(held.get("added_tokens") or ()), *beside]})


def _bare_json(held: Mapping[str, Any]) -> str:
    """A `tokenizer.json` that puts nothing around a text."""
    bare = {**held, "post_processor": None, "truncation": None, "padding": None}
    return json.dumps(bare, ensure_ascii=False)


def _without_special(text: str) -> str:
    """A `tokenizer.json` for gigatoken, which looks for special tokens: those in a text are text.

    It takes the ids of the other added tokens from the file, where `tokenizers` counts them anew.
    """
    held = json.loads(text)
    held["added_tokens"] = [token for token in held.get("added_tokens") or () if not token.get("special")]
    return json.dumps(held, ensure_ascii=False)


def _first_difference(
    lines: Sequence[str], left: Sequence[np.ndarray], right: Sequence[np.ndarray]
) -> str | None:
    for line, a, b in zip(lines, left, right, strict=True):
        if not np.array_equal(a, b):
            return line
    return None
