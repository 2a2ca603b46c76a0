"""Added tokens, such as `<pad>`: other files than the vocabulary give them their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenization.errors import UserError

ADDED_FILE, SPECIAL_FILE = "added_tokens.json", "special_tokens_map.json"

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class AddedToken:
    """A token with an id of its own, which is not among the pieces of the vocabulary's own file."""

    id: int
    content: str
    special: bool
    """Whether its spelling in a text is plain text; if not, the token is matched in texts."""
    flags: tuple[bool, bool, bool, bool] = (False, False, False, False)
    """`single_word`, `lstrip`, `rstrip`, `normalized`: how a token is matched in texts."""
    file: str = field(default="", compare=False)
    """The name of the file that defines it."""

    @classmethod
    def read(cls, token: Mapping[str, Any], index: int, special: bool) -> AddedToken:
        """Read a token as `tokenizer.json` and `tokenizer_config.json` describe one."""
        flags = tuple(bool(token.get(name, name == "normalized")) for name in _FLAGS)
        plain = (False, False, False, False)
        return cls(index, str(token["content"]), special, plain if special else flags)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return the token as `tokenizer.json` describes it."""
        flags = dict(zip(_FLAGS, self.flags, strict=True))
        return {"id": self.id, "content": self.content, **flags, "special": self.special}


def tokens_beside(
    pieces: Sequence[str],
    *,
    folder: Path,
    json: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    listed: Mapping[str, Any],
    special_map: Mapping[str, Any],
) -> tuple[AddedToken, ...]:
    """Return the tokens that the files in `folder` add after `pieces`, in the order of their ids.

    `json` is what `tokenizer.json` holds where it is not the vocabulary itself, `config` is
    `tokenizer_config.json`, `listed` is `added_tokens.json`, `special_map` is `special_tokens_map.json`.

    Raises:
        UserError: two files give one token two ids, or an id belongs to another piece or leaves a gap.
    """
    named = set(named_tokens(config)) | set(named_tokens(special_map))
    known = {piece: index for index, piece in enumerate(pieces)}
    found: dict[str, AddedToken] = {}
    for file, index, described in _all(json, config, listed):
        try:
            content = str(described["content"])
            special = bool(described.get("special")) or content in named
            token = replace(AddedToken.read(described, int(index), special), file=file)
        except (KeyError, TypeError, ValueError):
            raise UserError("has an added token without an id or a content", file=folder / file) from None
        elsewhere = found[content].id if content in found else known.get(content, token.id)
        if elsewhere != token.id:
            what = f"gives {content!r} the id {token.id}, and another file of the tokenizer {elsewhere}"
            raise UserError(what, file=folder / file, fix="keep the files of one tokenizer only")
        if content not in known and (content not in found or special):
            found[content] = token
    tokens = sorted(found.values(), key=lambda token: token.id)
    for place, token in enumerate(tokens, len(pieces)):
        if token.id != place:
            whose = f"the id of {pieces[token.id]!r}" if 0 <= token.id < len(pieces) else f"not {place}"
            what = f"gives the added token {token.content!r} the id {token.id}, which is {whose}"
            fix = "give added tokens the ids after those of the pieces, without a gap"
            raise UserError(what, file=folder, fix=fix)
    return tuple(tokens)


def content_of(named: Any) -> str | None:
    """Return the text of a token that a config names, as a string or as a description."""
    content = named.get("content") if isinstance(named, Mapping) else named
    return content if isinstance(content, str) else None


def named_tokens(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tokens that a `tokenizer_config.json` or `special_tokens_map.json` names for a purpose."""
    for name, value in config.items():
        if name in ("additional_special_tokens", "extra_special_tokens"):
            several = value.values() if isinstance(value, Mapping) else value or ()
        else:
            several = [value] if name.endswith("_token") else ()
        yield from (content for one in several if (content := content_of(one)) is not None)


def _all(
    json: Mapping[str, Any] | None, config: Mapping[str, Any], listed: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield every file's tokens: the file, the id, and the description."""
    for token in (json or {}).get("added_tokens") or ():
        yield "tokenizer.json", token.get("id"), token
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        yield "tokenizer_config.json", index, token
    for content, index in listed.items():
        yield ADDED_FILE, index, {"content": content}
