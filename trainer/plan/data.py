"""Open the shards of a recipe and check that they fit together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore, open_tokens
from tokenization.tokenizer.files import Tokenizer
from tokenization.tokenizer.fingerprint import same
from trainer.mixer.mixture import SourceSize
from trainer.recipe.schema import Recipe
from trainer.recipe.validation import field_of
from trainer.scheduler.state import RunState


def open_sources(
    recipe: Recipe, begun_with: Mapping[str, str] | None = None, used_up: Collection[str] = ()
) -> dict[str, TokenStore]:
    """Open the token stores of all sources, memory-mapped, in the recipe's order.

    `begun_with` holds the fingerprint of each source that the run has recorded in its checkpoint. Sizes and
    fingerprints are compared, which takes no reading of tokens; `rewarm data inspect` reads them all.
    Sources that are `used_up` may be gone, and are left out then.

    Raises:
        UserErrors: sources are missing, truncated, changed since, named twice, or made with another
            tokenizer than the first one.
    """
    names = {f"sources.{name}.path": name for name in recipe.sources}
    stores, problems = _open_all(
        {field: recipe.sources[name].path for field, name in names.items()},
        optional={field for field, name in names.items() if name in used_up},
    )
    known = {f"sources.{name}.path": fingerprint for name, fingerprint in (begun_with or {}).items()}
    for field, store in stores.items():
        if (before := known.get(field, store.fingerprint)) != store.fingerprint:
            what = f"has changed since the run began: its fingerprint is {store.fingerprint}, not {before}"
            fix = "restore those shards, or declare the new ones as another source in a new phase"
            problems.append(UserError(what, field=field, value=str(store.prefix), fix=fix))
    problems += _named_twice(stores)
    problems += _mixed_tokenizers(stores)
    if problems:
        raise UserErrors(problems)
    return {names[field]: store for field, store in stores.items()}


def used_up(recipe: Recipe, state: RunState | None) -> set[str]:
    """Find the sources that no phase takes from any more, from where the run stands to its end."""
    if state is None:
        return set()
    begun = len(state.phases) if state.phase_done else state.phase
    needed = set() if state.phase_done else set(state.running.data.sources)
    for phase in recipe.phases[begun:]:
        for segment in phase.mixture:
            # A share of a role may fall to any source of that role.
            needed |= set(recipe.sources) if segment.replay_ratio is not None else set(segment.weights)
    return {name for name in recipe.sources if name in state.fingerprints() and name not in needed}


def sizes_of(
    recipe: Recipe, stores: Mapping[str, TokenStore], state: RunState | None
) -> dict[str, SourceSize]:
    """Return the size of every source; of one that is gone, what the run recorded of it."""
    sizes = {name: SourceSize.of(store, recipe.seq_len) for name, store in stores.items()}
    for record in state.phases if state else ():
        for name, source in record.data.sources.items():
            if name in recipe.sources and name not in sizes:
                tokens = source.samples * record.data.seq_len + 1
                sizes[name] = SourceSize((tokens - 1) // recipe.seq_len, source.fingerprint, tokens)
    return sizes


def open_validation(recipe: Recipe, missing: Collection[str] = ()) -> dict[str, TokenStore]:
    """Open the validation sets that the recipe names, but for those `missing`, by their names in metrics.

    Raises:
        UserErrors: a set is missing, damaged, too short, or written by a model.
    """
    named = {name: prefix for name, prefix in recipe.validation.paths.items() if name not in missing}
    stores, problems = _open_all({field_of(name): prefix for name, prefix in named.items()})
    for field, store in stores.items():
        if store.tokens < 2:
            what, fix = "holds fewer than 2 tokens", "prepare it again with a larger `--validation`"
            problems.append(UserError(what, field=field, value=str(store.prefix), fix=fix))
        if store.generated:
            what = f"was written by the model {store.generated.get('model')!r}, and scores are of true text"
            fix = "hold out text that people wrote"
            problems.append(UserError(what, field=field, value=str(store.prefix), fix=fix))
    if problems:
        raise UserErrors(problems)
    return dict(zip(named, stores.values(), strict=True))


def _open_all(
    prefixes: Mapping[str, str], optional: Collection[str] = ()
) -> tuple[dict[str, TokenStore], list[UserError]]:
    """Open shards by the field that names them; return those that open, and the errors of the others.

    Fields that are `optional` need not open.
    """
    stores, problems = {}, []
    for field, prefix in prefixes.items():
        try:
            stores[field] = open_tokens(prefix)
        except UserError as error:
            if field not in optional:
                problems.append(UserError(f"{field}: {error}"))
    return stores, problems


def share_tokens(one: TokenStore, other: TokenStore) -> bool:
    """Tell whether two stores have the tokens of a part in common, wherever their files are."""
    parts = [{part.meta.checksum for part in store.parts if part.meta.tokens} for store in (one, other)]
    return not parts[0].isdisjoint(parts[1])


def _named_twice(stores: Mapping[str, TokenStore]) -> Iterator[UserError]:
    """Find tokens with two names: they are read twice, and `max_epochs` counts each name by itself."""
    for (first, one), (field, other) in combinations(stores.items(), 2):
        if share_tokens(one, other):
            source, path = first.removesuffix(".path"), str(one.prefix)
            what = f"holds the same tokens as {source}, {path!r}: max_epochs would count them apart"
            yield UserError(what, field=field, value=str(other.prefix), fix="name every text once")


def trained_on(
    recipe: Recipe, stores: Mapping[str, TokenStore], validation: Mapping[str, TokenStore]
) -> Iterator[str]:
    """Write a line for each validation set that holds text which is trained on."""
    for name, held_out in validation.items():
        for source, store in stores.items():
            if share_tokens(store, held_out):
                yield (
                    f"{field_of(name)}: {str(held_out.prefix)!r} holds tokens that sources.{source} trains "
                    "on: its score says nothing about other text; hold text out with "
                    "`rewarm data prepare --validation`"
                )


def _mixed_tokenizers(stores: Mapping[str, TokenStore]) -> Iterator[UserError]:
    first = next(iter(stores.values()), None)
    for field, store in stores.items():
        if first is not None and not same(store.tokenizer, first.tokenizer):
            what = f"was made with tokenizer {store.tokenizer}, but {first.prefix} with {first.tokenizer}"
            fix = "prepare all sources with one tokenizer, or name the shards that were"
            yield UserError(what, field=field, value=str(store.prefix), fix=fix)


def check_one_tokenizer(
    recipe: Recipe,
    stores: Mapping[str, TokenStore],
    validation: Mapping[str, TokenStore],
    tokenizer: Tokenizer,
) -> None:
    """Refuse shards that were not made with the model's tokenizer, or end documents with another EOS.

    Raises:
        UserErrors: one for each.
    """
    places = {f"sources.{name}.path": store for name, store in stores.items()}
    places |= {field_of(name): store for name, store in validation.items()}
    named = f"model.tokenizer {recipe.model.tokenizer}"
    problems = []
    for field, store in places.items():
        if not same(store.tokenizer, tokenizer.fingerprint):
            what = f"was made with tokenizer {store.tokenizer}, but {named} is {tokenizer.fingerprint}"
        elif store.eos_id != tokenizer.eos_id:
            what = f"ends documents with {store.eos_id}, but EOS of {named} is {tokenizer.eos_id}"
        elif store.vocab_size > tokenizer.size:
            what = f"has ids of a vocabulary of {store.vocab_size}, but {named} has {tokenizer.size} pieces"
        else:
            continue
        fix = (
            "prepare it again with model.tokenizer, or name the shards and the tokenizer that belong together"
        )
        problems.append(UserError(what, field=field, value=str(store.prefix), fix=fix))
    if problems:
        raise UserErrors(problems)
