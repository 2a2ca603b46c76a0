"""What a user's transformers makes of a tokenizer's directory, held against what a model is trained with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenization.tokenizer import encoder, engines, hard_lines
from tokenization.tokenizer.files import Tokenizer
from tokenization.tokenizer.hf_json import SPACE, TokenPiece

Loader = Literal["AutoTokenizer", "PreTrainedTokenizerFast"]

LOADERS: tuple[Loader, ...] = ("AutoTokenizer", "PreTrainedTokenizerFast")

MOST_RUNS = 20_000
"""Pairs of pieces that are encoded for a proof, spread over the whole vocabulary."""


class TransformersEngine:
    """What a user gets from a directory, with special tokens in a text taken for text."""

    name = "transformers"

    def __init__(self, directory: Path, loader: Loader = "AutoTokenizer") -> None:
        import transformers

        before = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()
        try:
            self.tokenizer: Any = getattr(transformers, loader).from_pretrained(directory)
        finally:
            transformers.utils.logging.set_verbosity(before)

    def encode(self, texts: Sequence[str]) -> engines.Encoded:
        """See `encoder.Engine`."""
        rows = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        return np.fromiter((index for row in rows for index in row), np.int32, int(lengths.sum())), lengths


def difference(directory: str | Path, tokenizer: Tokenizer, loader: Loader = "AutoTokenizer") -> str | None:
    """How transformers on `directory` differs from `tokenizer`; None: same pieces, ids, EOS and BOS.

    Ids are compared on the hard lines, on every added token and on pairs of pieces.
    """
    try:
        found = TransformersEngine(Path(directory), loader)
        wrong = next(_differences(found, tokenizer), None)
    except Exception as error:  # whatever a user would meet
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
    """Texts on which two tokenizers that differ somewhere are likely to differ."""
    pairs = list(itertools.pairwise(_texts(tokenizer)))
    pairs = pairs[:: max(1, -(-len(pairs) // MOST_RUNS))]
    return [*hard_lines.HARD_LINES, *encoder.added_lines(tokenizer), *("".join(pair) for pair in pairs)]


def _texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each piece that texts are made of."""
    if tokenizer.model is not None:
        kinds = (TokenPiece.NORMAL, TokenPiece.USER_DEFINED)
        return [piece.piece.replace(SPACE, " ") for piece in tokenizer.model.pieces if piece.type in kinds]
    import tokenizers

    ids = [[index] for index in range(tokenizer.size) if tokenizer.is_text(index)]
    decoded: list[str] = tokenizers.Tokenizer.from_file(str(tokenizer.path)).decode_batch(ids)
    return [text for text in decoded if text and "\ufffd" not in text]
