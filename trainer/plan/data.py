"""Open the shards of a recipe and check that they fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore, open_tokens
from trainer.recipe.schema import Recipe


def open_sources(recipe: Recipe, begun_with: Mapping[str, str] | None = None) -> dict[str, TokenStore]:
    """The token stores of all sources, memory-mapped, in the recipe's order.

    `begun_with` holds the fingerprint of each source that the run has recorded in its checkpoint. Sizes and
    fingerprints are compared, which takes no reading of tokens; `rewarm data inspect` reads them all.

    Raises:
        Problems: a source is missing, cut short, changed since, or made with another tokenizer than the
            first one; all of them at once.
    """
    stores: dict[str, TokenStore] = {}
    problems: list[UserError] = []
    for name, source in recipe.sources.items():
        try:
            stores[name] = open_tokens(source.path)
        except UserError as error:
            problems.append(UserError(f"sources.{name}.path: {error}"))
    problems += _changed(recipe, stores, begun_with or {})
    problems += _mixed_tokenizers(recipe, stores)
    if problems:
        raise UserErrors(problems)
    return stores


def _changed(
    recipe: Recipe, stores: Mapping[str, TokenStore], begun_with: Mapping[str, str]
) -> Iterator[UserError]:
    for name, store in stores.items():
        known = begun_with.get(name, store.fingerprint)
        if known != store.fingerprint:
            yield UserError(
                f"does not hold what the run began with: fingerprint {store.fingerprint}, not {known}",
                field=f"sources.{name}.path",
                value=recipe.sources[name].path,
                fix="restore those shards, or name the new ones as another source in a new phase",
            )


def _mixed_tokenizers(recipe: Recipe, stores: Mapping[str, TokenStore]) -> Iterator[UserError]:
    first = next(iter(stores), None)
    for name, store in stores.items():
        if first is not None and store.tokenizer != stores[first].tokenizer:
            yield UserError(
                f"was made with tokenizer {store.tokenizer}, but {first} with {stores[first].tokenizer}",
                field=f"sources.{name}.path",
                value=recipe.sources[name].path,
                fix="prepare all sources with one tokenizer",
            )


def open_validation(recipe: Recipe) -> dict[str, TokenStore]:
    """Open the validation sets that the recipe names: `upstream`, `downstream`.

    Raises:
        UserErrors: a set is missing, damaged or too short.
    """
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
    stores: Mapping[str, TokenStore],
    validation: Mapping[str, TokenStore],
    fingerprint: str,
) -> None:
    """Refuse shards that were not made with the model's tokenizer, whose fingerprint is given.

    Raises:
        UserErrors: one for each.
    """
    places = {f"sources.{name}.path": store for name, store in stores.items()}
    places |= {f"validation.{name}": store for name, store in validation.items()}
    problems = [
        UserError(
            f"was prepared with tokenizer {store.tokenizer}, but model.tokenizer {recipe.model.tokenizer} "
            f"has the fingerprint {fingerprint}",
            field=field,
            value=str(store.prefix),
            fix="prepare it again with model.tokenizer",
        )
        for field, store in places.items()
        if store.tokenizer != fingerprint
    ]
    if problems:
        raise UserErrors(problems)
