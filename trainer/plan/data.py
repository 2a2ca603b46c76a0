"""Open the shards of a recipe and check that they fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore, open_tokens
from tokenization.tokenizer import files
from tokenization.tokenizer.fingerprint import same
from trainer.recipe.schema import Recipe


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
        raise UserErrors(problems)
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
                fix="restore those shards, or name the new ones as another source in a new phase",
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
                fix="name every text once",
            )


def _mixed_tokenizers(recipe: Recipe, stores: Mapping[str, TokenStore]) -> Iterator[UserError]:
    first = next(iter(stores), None)
    for name, store in stores.items():
        if first is not None and not same(store.tokenizer, stores[first].tokenizer):
            yield UserError(
                f"was made with tokenizer {store.tokenizer}, but {first} with {stores[first].tokenizer}",
                field=f"sources.{name}.path",
                value=recipe.sources[name].path,
                fix="prepare all sources with one tokenizer",
            )


def open_validation(recipe: Recipe) -> dict[str, TokenStore]:
    sets = {"upstream": recipe.validation.upstream, "downstream": recipe.validation.downstream}
    stores = {}
    problems = []
    for name, prefix in sets.items():
        if prefix is None:
            continue
        try:
            stores[name] = open_tokens(prefix)
            if stores[name].tokens < 2:
                raise UserError("holds fewer than 2 tokens", file=prefix, fix="hold out more text")
        except UserError as error:
            problems.append(UserError(f"validation.{name}: {error}"))
    if problems:
        raise UserErrors(problems)
    return stores


def check_one_tokenizer(
    recipe: Recipe,
    tokenizer: files.Tokenizer,
    stores: Mapping[str, TokenStore],
    validation: Mapping[str, TokenStore],
) -> None:
    """Shards made with another tokenizer than the model's would be noise."""
    wanted = tokenizer.fingerprint
    places = {f"sources.{name}.path": store for name, store in stores.items()}
    places |= {f"validation.{name}": store for name, store in validation.items()}
    problems = [
        UserError(
            f"was prepared with tokenizer {store.tokenizer}, and model.tokenizer {recipe.model.tokenizer} "
            f"is {wanted}",
            field=field,
            value=str(store.prefix),
            fix="prepare it again with model.tokenizer",
        )
        for field, store in places.items()
        if not same(store.tokenizer, wanted)
    ]
    problems += [
        UserError(
            f"ends documents with {store.eos_id}, and EOS of {recipe.model.tokenizer} is {tokenizer.eos_id}",
            field=field,
            value=str(store.prefix),
            fix="prepare it again with model.tokenizer",
        )
        for field, store in places.items()
        if same(store.tokenizer, wanted) and store.eos_id != tokenizer.eos_id
    ]
    if problems:
        raise UserErrors(problems)
