"""Which tokenizer a model's rows are of, and what its config says of special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenization.errors import RewarmError, UserError
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.fingerprint import same
from tokenization.tokenizer.settings import TEMPLATE_FOLDERS
from trainer.storage.hub import TOKENIZER_FILES, fetch_from_hub

TOKENIZER = "tokenizer_fingerprint"
"""The config field that tells of which tokenizer the rows of the embeddings are."""

NAMES = ("bos", "eos", "pad")


def own_tokenizer(model: str | Path) -> Tokenizer | None:
    """The tokenizer beside the weights of a model directory or hub id; None where there is none."""
    path = Path(model)
    try:
        if not path.exists():
            path = fetch_from_hub(
                model, [*TOKENIZER_FILES, *(f"{name}/*" for name in TEMPLATE_FOLDERS)], None
            )
        return open_tokenizer(path) if any((path / name).is_file() for name in TOKENIZER_FILES[:2]) else None
    except RewarmError:
        return None


def fingerprint_of(model: str | Path, config: Mapping[str, Any]) -> str | None:
    """The fingerprint of the tokenizer of a model's rows: as recorded, else of the files beside it."""
    if isinstance(recorded := config.get(TOKENIZER), str):
        return recorded
    found = own_tokenizer(model)
    return found.fingerprint if found else None


def compare(base: str, config: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Compare a tokenizer with the one that the rows of `base` belong to, and return notes.

    Every id must be the same piece in both. Either may go on where the other ends.

    Raises:
        UserError: the rows are of another tokenizer.
    """
    recorded = config.get(TOKENIZER)
    if isinstance(recorded, str) and same(recorded, tokenizer.fingerprint):
        return []
    named, where = f"model.tokenizer {tokenizer.path}", f"model.base: {base!r}"
    own = own_tokenizer(base)
    if own is None and recorded is None:
        return [f"{where}: no tokenizer lies beside it, so {named} could not be compared with it"]
    fix = "give the tokenizer that the base was made for, or run `rewarm model extend` with this one"
    if own is None:
        what = f"has rows of the tokenizer {recorded}, and {named} is {tokenizer.fingerprint}"
        raise UserError(what, field="model.base", value=base, fix=fix)
    for index, (was, now) in enumerate(zip(own.pieces, tokenizer.pieces, strict=False)):
        if was and now and was != now:
            what = f"has a row of {was!r} for the id {index}, which is {now!r} in {named}"
            raise UserError(what, field="model.base", value=base, fix=fix)
    return list(_differing(where, named, own, tokenizer))


def _differing(where: str, named: str, own: Tokenizer, tokenizer: Tokenizer) -> Iterator[str]:
    """What differs between two tokenizers that give one piece one id."""
    if own.size > tokenizer.size:
        lost = ", ".join(own.pieces[tokenizer.size :][:5])
        many = own.size - tokenizer.size
        yield f"{where}: its tokenizer has {many:,} more tokens ({lost}) than {named}: no export has them"
    elif own.size < tokenizer.size:
        many = tokenizer.size - own.size
        yield f"{where}: {many:,} tokens of {named} begin on the base's padding rows"
    for name in ("eos", "bos"):
        if (was := own.special_id(name)) != (now := tokenizer.special_id(name)):
            yield f"{where}: {name.upper()} is {was} in its tokenizer and {now} in {named}"


def padding(
    config: Mapping[str, Any], tokenizer: Tokenizer, field: str = "model.base", value: Any = None
) -> list[str]:
    """Return notes on the config's `pad_token_id`.

    Raises:
        UserError: it is a piece of text, whose input row would never train.
    """
    pad = config.get("pad_token_id")
    if not isinstance(pad, int):
        return []
    if tokenizer.is_text(pad):
        what = f"has pad_token_id {pad} in config.json, which is {tokenizer.pieces[pad]!r}, a piece of text"
        fix = "set it to null there, or to the id of a special token"
        raise UserError(what, field=field, value=value, fix=fix)
    if pad == tokenizer.special_id("eos"):
        return [
            f"{field}: {value!r}: its pad_token_id {pad} is EOS as well: its row is trained here like any"
            " other; whoever pads batches must not mask targets by that id, or the model never learns to end"
            " a document"
        ]
    return []


def with_special(
    config: Mapping[str, Any], tokenizer: Tokenizer, file: str, base_rows: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """A `config.json` or `generation_config.json` with EOS, BOS and pad ids that are the tokenizer's.

    What it says and can be right is kept: more EOS ids than one, a pad id that is not text. Of several EOS
    ids one may be text at which generation stops, such as a line feed, if it was a piece of the base: one of
    its `base_rows`, or of all rows where none were appended. Also return notes on what is not kept.
    """
    changed, lines = dict(config), []
    for name in NAMES:
        field = f"{name}_token_id"
        was, own = config.get(field), tokenizer.special_id(name)
        now = _eos(was, own, tokenizer, base_rows) if name == "eos" else _other(was, own, tokenizer)
        if now != was:
            changed[field] = now
            lines.append(f"{file}: {field} {was} is {now} now, as the tokenizer has it")
    return changed, lines


def _eos(was: Any, own: int | None, tokenizer: Tokenizer, base_rows: int | None) -> Any:
    """The EOS ids, the tokenizer's among them: those that are special, or text of the base beside EOS."""
    ids = was if isinstance(was, list) else [] if was is None else [was]
    text = range(tokenizer.size if base_rows is None else min(base_rows, tokenizer.size))
    stops = own in ids
    kept = [index for index in ids if _possible(index, tokenizer) or (stops and index in text)]
    if own is None or own in kept:
        return was if kept == ids else kept
    return [own, *kept] if isinstance(was, list) and kept else own


def _other(was: Any, own: int | None, tokenizer: Tokenizer) -> Any:
    return was if was is None or _possible(was, tokenizer) else own


def _possible(index: Any, tokenizer: Tokenizer) -> bool:
    """Whether an id may be a special token's: one of the tokenizer's, and not of a piece of text."""
    return isinstance(index, int) and 0 <= index < tokenizer.size and not tokenizer.is_text(index)
