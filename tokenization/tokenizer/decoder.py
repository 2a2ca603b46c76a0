"""Token ids back to text, for people who want to see what a model is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby

import sentencepiece

from tokenization.tokenizer.files import Tokenizer

Decode = Callable[[Sequence[int]], str]


def decoder_of(tokenizer: Tokenizer) -> Decode:
    """Return the function that turns ids into text; added tokens stand there as they are written."""
    if tokenizer.model is None:
        import tokenizers

        made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.json))
        return lambda ids: str(made.decode(list(ids), skip_special_tokens=False))
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model.SerializeToString())
    own = model.vocab_size()

    def decode(ids: Sequence[int]) -> str:
        runs = groupby(ids, key=lambda token: token < own)
        return "".join(
            model.decode(list(run)) if known else "".join(tokenizer.pieces[token] for token in run)
            for known, run in runs
        )

    return decode
