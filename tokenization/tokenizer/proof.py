"""Compare what transformers makes of a tokenizer's directory with the ids of the training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenization.tokenizer import encoder, engines, hard_lines
from tokenization.tokenizer.files import Tokenizer
from tokenization.tokenizer.hf_json import SPACE, TokenPiece

TransformersClass = Literal["AutoTokenizer", "PreTrainedTokenizerFast"]

LOADERS: tuple[TransformersClass, ...] = ("AutoTokenizer", "PreTrainedTokenizerFast")

MOST_RUNS = 20_000
"""Pairs of pieces that are encoded for a proof, spread over the whole vocabulary."""


class TransformersEngine:
    """The encoder that a user gets from a directory; special tokens in a text are text."""

    name = "transformers"

    def __init__(self, directory: Path, loader: TransformersClass = "AutoTokenizer") -> None:
        import transformers

        before = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()
        try:
            made = getattr(transformers, loader)
            self.tokenizer: Any = made.from_pretrained(directory, trust_remote_code=False)
        finally:
            transformers.utils.logging.set_verbosity(before)

    def encode(self, texts: Sequence[str]) -> engines.Encoded:
        """Return ids and lengths; see `EncodingEngine`."""
        rows = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        return np.fromiter((index for row in rows for index in row), np.int32, int(lengths.sum())), lengths


def difference(
    directory: str | Path, tokenizer: Tokenizer, loader: TransformersClass = "AutoTokenizer"
) -> str | None:
    """Return how transformers on `directory` differs from `tokenizer`; None if it does not.

    The pieces, EOS, BOS, and the ids of the hard lines, of added tokens and of pairs of pieces are compared.
    """
    try:
        found = TransformersEngine(Path(directory), loader)
        wrong = next(_differences(found, tokenizer), None)
    except Exception as error:  # any error that a user would get
        return f"it cannot be loaded ({encoder.readable(error)[:200]})"
    return wrong


def _differences(found: TransformersEngine, tokenizer: Tokenizer) -> Iterator[str]:
    theirs = found.tokenizer
    if len(theirs) != tokenizer.size:
        yield f"it has {len(theirs):,} pieces instead of {tokenizer.size:,}"
    named = theirs.convert_ids_to_tokens(list(range(tokenizer.size)))
    for index, (piece, other) in enumerate(zip(tokenizer.pieces, named, strict=True)):
        if piece and piece != other:
            yield f"id {index} is {other!r} instead of {piece!r}"
    for name in ("eos", "bos"):
        wanted, given = tokenizer.special_id(name), getattr(theirs, f"{name}_token_id")
        if wanted is not None and given != wanted:
            yield f"its {name.upper()} is {given} instead of {wanted}"
    lines = proof_lines(tokenizer)
    left = engines.split(encoder.reference(tokenizer).encode(lines))
    for line, mine, other in zip(lines, left, engines.split(found.encode(lines)), strict=True):
        if not np.array_equal(mine, other):
            yield f"its ids differ on {line[:60]!r}"


def proof_lines(tokenizer: Tokenizer) -> list[str]:
    """Return texts on which two different tokenizers are likely to give different ids."""
    pairs = list(itertools.pairwise(_texts(tokenizer)))
    pairs = pairs[:: max(1, -(-len(pairs) // MOST_RUNS))]
    return [*hard_lines.HARD_LINES, *encoder.added_lines(tokenizer), *("".join(pair) for pair in pairs)]


def _texts(tokenizer: Tokenizer) -> list[str]:
    """Return the text of each piece that occurs in texts."""
    if tokenizer.model is not None:
        kinds = (TokenPiece.NORMAL, TokenPiece.USER_DEFINED)
        return [piece.piece.replace(SPACE, " ") for piece in tokenizer.model.pieces if piece.type in kinds]
    import tokenizers

    ids = [[index] for index in range(tokenizer.size) if tokenizer.is_text(index)]
    decoded: list[str] = tokenizers.Tokenizer.from_file(str(tokenizer.path)).decode_batch(ids)
    return [text for text in decoded if text and "\ufffd" not in text]
