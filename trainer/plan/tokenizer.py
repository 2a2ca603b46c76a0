"""Check that the tokenizer, the base and the run's past belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenization.errors import UserError, UserErrors
from tokenization.tokenizer.encoder import reference
from tokenization.tokenizer.engines import split
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.fingerprint import same
from trainer.checkpoint.manifest import Checkpoint
from trainer.model import architecture, tokens
from trainer.plan.past import saved_config
from trainer.recipe.schema import Recipe


def named_tokenizer(recipe: Recipe) -> Tokenizer:
    """Open the tokenizer of a recipe.

    Raises:
        UserErrors: it is missing or of a kind that is not read; each line names the field.
    """
    try:
        return open_tokenizer(recipe.model.tokenizer)
    except UserError as error:
        lines = str(error).splitlines()
        raise UserErrors([UserError(f"model.tokenizer: {line}") for line in lines]) from error


def compare_with_base(recipe: Recipe, config: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Compare the base with the tokenizer; return a line for each thing that differs or is unusual.

    Raises:
        UserError: the base's rows belong to another tokenizer, or its pad id is a piece of text.
    """
    base = recipe.model.base
    if base is None:
        return []
    return [*tokens.compare(base, config, tokenizer), *tokens.padding(config, tokenizer, value=base)]


def known_pieces(recipe: Recipe, config: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    """Count the pieces of the tokenizer that the rows of the model are known to be of; None if unknown.

    The rows beyond them are padding, however many they are.
    """
    recorded, base = config.get(tokens.TOKENIZER), recipe.model.base
    if isinstance(recorded, str) and same(recorded, tokenizer.fingerprint):
        return tokenizer.size
    if base is None or int(config["vocab_size"]) < tokenizer.size + architecture.MOST_PADDING:
        return None
    own = tokens.own_tokenizer(base)
    return own.size if own is not None else None


def with_tokenizer(
    recipe: Recipe, config: dict[str, Any], tokenizer: Tokenizer, *, begun: bool = False
) -> dict[str, Any]:
    """Add the tokenizer's fingerprint to a config, and to that of random weights its EOS, BOS and pad.

    A run that has `begun` keeps the ids that it began with.
    """
    added = {**config, tokens.TOKENIZER: tokenizer.fingerprint}
    if recipe.model.base is None and not begun:
        ids = {f"{name}_token_id": tokenizer.special_id(name) for name in tokens.NAMES}
        added |= {field: index for field, index in ids.items() if field not in (recipe.model.init or {})}
    return added


def check_as_trained(recipe: Recipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None) -> None:
    """Refuse a tokenizer that is not the one that the run was trained with.

    Raises:
        UserError: it is another one.
    """
    if checkpoint is None:
        return
    recorded = (saved_config(checkpoint) or {}).get(tokens.TOKENIZER)
    if isinstance(recorded, str) and not same(recorded, tokenizer.fingerprint):
        raise UserError(
            f"is {tokenizer.fingerprint} now, but {checkpoint.path} was trained with {recorded}",
            field="model.tokenizer",
            value=recipe.model.tokenizer,
            fix="restore the tokenizer that the run began with, or give another run_dir",
        )


def prompt_ids(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Encode prompts as the beginnings of documents: after the EOS of the document before."""
    return [np.append(tokenizer.eos_id, ids) for ids in split(reference(tokenizer).encode(list(texts)))]


def check_probe(recipe: Recipe, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Refuse prompts that the model's context cannot hold with their continuations.

    Raises:
        UserErrors: one for each.
    """
    probe, context = recipe.probe, config.get("max_position_embeddings")
    if probe is None or context is None:
        return
    problems = [
        UserError(
            f"takes {len(ids)} tokens and {probe.max_tokens} more, and the model's context is {context}",
            field=f"probe.prompts.{number}",
            value=text if len(text) < 80 else f"{text[:77]}…",
            fix="shorten it, or lower probe.max_tokens",
        )
        for number, (text, ids) in enumerate(
            zip(probe.prompts, prompt_ids(probe.prompts, tokenizer), strict=True)
        )
        if len(ids) + probe.max_tokens > int(context)
    ]
    if problems:
        raise UserErrors(problems)
