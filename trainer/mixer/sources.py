"""Opens a recipe's sources; refuses by name what is missing, damaged or not what a run began with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from tokenization.fingerprint import same
from tokenization.shards import TokenStore, open_tokens
from trainer.errors import Problems, UserError
from trainer.recipe import Recipe


def open_sources(recipe: Recipe, described: Mapping[str, Any] | None = None) -> dict[str, TokenStore]:
    """The token stores of all sources, memory-mapped, in the recipe's order.

    `described` is what `Mixture.describe` said when the run began, from its checkpoint. Sizes and
    fingerprints are compared, which takes no reading of tokens; `rewarm data inspect` reads them all.

    Raises:
        Problems: a source is missing, cut short, changed since, named twice, or made with another tokenizer
            than the first one; all of them at once.
    """
    stores: dict[str, TokenStore] = {}
    problems: list[UserError] = []
    for name, source in recipe.sources.items():
        try:
            stores[name] = open_tokens(source.path)
        except UserError as error:
            problems.append(UserError(f"sources.{name}.path: {error}"))
    problems += _changed(recipe, stores, described or {})
    problems += _named_twice(recipe, stores)
    problems += _mixed_tokenizers(recipe, stores)
    if problems:
        raise Problems(problems)
    return stores


def _changed(
    recipe: Recipe, stores: Mapping[str, TokenStore], described: Mapping[str, Any]
) -> Iterator[UserError]:
    for name, store in stores.items():
        known = described.get(f"sources.{name}.fingerprint", store.fingerprint)
        if known != store.fingerprint:
            yield UserError(
                f"does not hold what the run began with: fingerprint {store.fingerprint}, not {known}",
                field=f"sources.{name}.path",
                value=recipe.sources[name].path,
                mend="restore those shards, or name the new ones as another source in a new phase",
            )


def shared(one: TokenStore, other: TokenStore) -> bool:
    """Whether two stores have the tokens of a part in common, wherever the files lie."""
    parts = [{part.meta.checksum for part in store.parts if part.meta.tokens} for store in (one, other)]
    return not parts[0].isdisjoint(parts[1])


def _named_twice(recipe: Recipe, stores: Mapping[str, TokenStore]) -> Iterator[UserError]:
    """The same tokens under two names are read twice, and `max_epochs` counts each name by itself."""
    for (first, one), (name, other) in combinations(stores.items(), 2):
        if shared(one, other):
            yield UserError(
                f"holds the same tokens as sources.{first}, {recipe.sources[first].path!r}: max_epochs would "
                "count them apart",
                field=f"sources.{name}.path",
                value=recipe.sources[name].path,
                mend="name every text once",
            )


def _mixed_tokenizers(recipe: Recipe, stores: Mapping[str, TokenStore]) -> Iterator[UserError]:
    first = next(iter(stores), None)
    for name, store in stores.items():
        if first is not None and not same(store.tokenizer, stores[first].tokenizer):
            yield UserError(
                f"was made with tokenizer {store.tokenizer}, but {first} with {stores[first].tokenizer}",
                field=f"sources.{name}.path",
                value=recipe.sources[name].path,
                mend="prepare all sources with one tokenizer",
            )
