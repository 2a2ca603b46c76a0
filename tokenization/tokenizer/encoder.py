"""The choice of an engine: the fastest one that gives the same ids as the reference.

The reference is SentencePiece on `tokenizer.model`, or `tokenizers` on `tokenizer.json` if there is no other
file or if added tokens are matched in texts. The reference is checked too: it must give added tokens the ids
in their files. Other engines read the equivalent `tokenizer.json`. A special token such as `</s>` in a text
is text. An engine that disagrees on one line is not used, and a note gives the reason.
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
    """The engine to use, and a line for each faster engine that is not used."""

    engine: EncodingEngine
    dropped: list[str]


def choose_engine(tokenizer: Tokenizer, sample: Sequence[str], *, only: str | None = None) -> Choice:
    """Return the fastest engine that gives the reference's ids on `sample` and on the hard and long lines.

    The order of speed comes from `benchmarks/encode.py`; it is not measured here, so that all jobs choose the
    same engine. `only` names the engine to use, which must agree as well.

    Raises:
        UserError: the engine `only` does not exist or does not agree.
    """
    engines = _engines(tokenizer)
    if only is not None and only not in engines:
        raise UserError(f"is not one of {', '.join(engines)}", field="--engine", value=only)
    truth = reference(tokenizer, threads=os.cpu_count() or 1)
    lines = [*HARD_LINES, *long_lines(), *added_lines(tokenizer), *sample]
    dropped: list[str] = []
    # The reference is slower, so it starts first, in a thread.
    with ThreadPoolExecutor(1) as thread:
        expected = thread.submit(truth.encode, lines)
        for name in engines if only is None else [only]:
            if name == truth.name:
                return Choice(engines[name](), dropped)
            try:
                engine = engines[name]()
                found = split(engine.encode(lines))
                wrong = _first_difference(lines, split(expected.result()), found)
                why = f"its ids differ from {truth.name}'s on {wrong[:60]!r}" if wrong is not None else None
                why = next(_wrong_ids(tokenizer, engine), why)
            except Exception as error:  # the library of an engine may raise any error
                why = readable(error)
            if why is None:
                return Choice(engine, dropped)
            dropped.append(f"{name} is not used: {why}")
    raise UserError(f"cannot be the engine: {dropped[0]}", field="--engine", value=only)


def create_engine(tokenizer: Tokenizer, name: str) -> EncodingEngine:
    """Create the engine `name`, whether or not it agrees with the reference."""
    return _engines(tokenizer)[name]()


def reference(tokenizer: Tokenizer, threads: int = 1) -> EncodingEngine:
    """Create the engine whose ids are right by definition; SentencePiece uses that many `threads`.

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
        fix = "give added tokens the ids after those of the vocabulary, without a gap"
        raise UserError(f"cannot be used: {wrong}", file=tokenizer.path, fix=fix)
    return engine


def disagreements(
    model: spm.ModelProto, lines: Sequence[str], tokenizer_json: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the `lines` on which `tokenizers`, reading a `tokenizer.json`, differs from SentencePiece.

    `tokenizer_json` is the content of that file; by default, `model` in that format.
    """
    read = tokenizer_json if tokenizer_json is not None else hf_json.from_model(model)
    engines = (SentencePieceEngine(model), TokenizersEngine(_bare_json(read)))
    left, right = (split(engine.encode(lines)) for engine in engines)
    return [line for line, a, b in zip(lines, left, right, strict=True) if not np.array_equal(a, b)]


def readable(error: BaseException) -> str:
    """Return the reason of an engine's error, without the place in its library's source."""
    text = " ".join(re.split(r"\bLocation:|\bStack backtrace|, src/", str(error))[0].split())
    if byte := re.search(r"no single-byte vocab entry for byte (0x[0-9a-fA-F]{2})", text):
        return f"it needs a piece for every byte, and the vocabulary has none for {byte[1]}"
    return f"{type(error).__name__}: {text}"


def added_lines(tokenizer: Tokenizer) -> list[str]:
    """Return lines that contain each added token, alone and within a text."""
    return [
        line
        for token in tokenizer.added_vocabulary
        for line in (token.content, f"a{token.content}b", f"中 {token.content} 文 {token.content}")
    ]


def _engines(tokenizer: Tokenizer) -> dict[str, Callable[[], EncodingEngine]]:
    """Return a constructor for each engine that can serve the tokenizer, the fastest first."""
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
    """Refuse added tokens that are found in texts if no `tokenizer.json` equals SentencePiece.

    Raises:
        UserError: `tokenizer.model` is not one that `tokenizers` encodes alike.
    """
    if tokenizer.model is None or not (found := _found_in_texts(tokenizer)):
        return
    if tokenizer.model.trainer_spec.model_type != spm.TrainerSpec.BPE or disagreements(
        tokenizer.model, HARD_LINES
    ):
        raise UserError(
            f"does not have the added token {found[0].content!r}, which is matched in texts, and no"
            " tokenizer.json equals it",
            file=tokenizer.path,
            fix='mark it as "special": true in tokenizer_config.json, or leave it out',
        )


def _found_in_texts(tokenizer: Tokenizer) -> list[AddedToken]:
    return [token for token in tokenizer.added_vocabulary if not token.special]


def _wrong_ids(tokenizer: Tokenizer, engine: EncodingEngine) -> Iterator[str]:
    """Yield each difference between the ids that an engine gives added tokens and those in their files."""
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
    """Return the `tokenizer.json` that gives the tokenizer's ids, added tokens included."""
    model = tokenizer.model
    own = hf_json.from_model(model) if model is not None else dict(tokenizer.json or {})
    added = [*(own.get("added_tokens") or ()), *(token.to_json() for token in tokenizer.added)]
    return _bare_json({**own, "added_tokens": added})


def _bare_json(tokenizer_json: Mapping[str, Any]) -> str:
    """Return a `tokenizer.json` that adds nothing around a text."""
    bare = {**tokenizer_json, "post_processor": None, "truncation": None, "padding": None}
    return json.dumps(bare, ensure_ascii=False)


def _without_special(text: str) -> str:
    """Return a `tokenizer.json` for gigatoken without special tokens, which are text in a text.

    It takes the ids of other added tokens from the file; `tokenizers` assigns new ones.
    """
    tokenizer_json = json.loads(text)
    added = tokenizer_json.get("added_tokens") or ()
    tokenizer_json["added_tokens"] = [token for token in added if not token.get("special")]
    return json.dumps(tokenizer_json, ensure_ascii=False)


def _first_difference(
    lines: Sequence[str], left: Sequence[np.ndarray], right: Sequence[np.ndarray]
) -> str | None:
    for line, a, b in zip(lines, left, right, strict=True):
        if not np.array_equal(a, b):
            return line
    return None
