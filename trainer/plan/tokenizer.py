"""Check that the tokenizer, the base and the run's past belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenization.errors import UserError
from tokenization.tokenizer.files import Tokenizer
from tokenization.tokenizer.fingerprint import same
from trainer.checkpoint.manifest import Checkpoint
from trainer.model import architecture, tokens
from trainer.plan.past import saved_config
from trainer.recipe.schema import Recipe


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
