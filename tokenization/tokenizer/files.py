"""A tokenizer on disk: its files, its pieces with all added tokens, and its fingerprint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.tokenizer import added
from tokenization.tokenizer.added import AddedToken
from tokenization.tokenizer.fingerprint import join, of_json, of_model
from tokenization.tokenizer.hf_json import TokenPiece

MODEL_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"

_TIKTOKEN = re.compile(rb"(?:[A-Za-z0-9+/]+=* \d+\r?\n){2}")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer on disk; `model` decides its ids if there is one, or else `json`."""

    path: Path
    """The file that it was read from."""
    model: spm.ModelProto | None
    json: Mapping[str, Any] | None
    config: Mapping[str, Any]
    """`tokenizer_config.json`, or empty."""
    added: tuple[AddedToken, ...] = ()
    """Tokens that other files of its directory add; empty if a file was named instead of a directory."""
    directory: bool = False
    """Whether a directory was named: then its config says which tokens are BOS and EOS."""

    @cached_property
    def pieces(self) -> list[str]:
        """Every piece, by id, added tokens included; empty where an id has none."""
        return [*self._own_pieces, *(token.content for token in self.added)]

    @cached_property
    def _own_pieces(self) -> list[str]:
        if self.model is not None:
            return [piece.piece for piece in self.model.pieces]
        assert self.json is not None
        added = {token["content"]: token["id"] for token in self.json.get("added_tokens") or ()}
        ids = dict(self.json["model"]["vocab"]) | added
        by_id = {index: piece for piece, index in ids.items()}
        return [by_id.get(index, "") for index in range(max(by_id) + 1)]

    @property
    def size(self) -> int:
        """The number of pieces: one more than the largest id."""
        return len(self.pieces)

    @property
    def eos_id(self) -> int:
        """The id that ends a document.

        Raises:
            UserError: the tokenizer has none.
        """
        if (index := self.special_id("eos")) is None:
            raise UserError(
                "has no EOS token",
                file=self.path,
                fix="set eos_token in tokenizer_config.json of the same directory",
            )
        return index

    @property
    def bos_id(self) -> int | None:
        """The id that a text may begin with; None: the tokenizer has none."""
        return self.special_id("bos")

    @property
    def pad_id(self) -> int | None:
        """The id that fills up batches; None: the tokenizer has none."""
        return self.special_id("pad")

    def special_id(self, name: str) -> int | None:
        """Return the id of the `bos`, `eos`, `pad` or `unk` token, or None if there is none.

        In a directory tokenizer_config.json decides, as in transformers. For a single `.model` file the model
        decides.
        """
        own = None
        if self.model is not None:
            index = int(getattr(self.model.trainer_spec, f"{name}_id"))
            own = index if 0 <= index < len(self.model.pieces) else None
            if own is not None and not self.directory:
                return own
        named = f"{name}_token" in self.config
        content = added.content_of(self.config.get(f"{name}_token"))
        if content in self._ids:
            return self._ids[str(content)]
        if own is None and not named and (name == "eos" or self.model is None):
            return self._ids.get({"bos": "<s>", "eos": "</s>"}.get(name, ""))
        return None if named and content is None and name != "eos" else own

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.pieces) if piece}

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece or an added token, or None for an unknown token."""
        return self._ids.get(piece)

    @property
    def added_vocabulary(self) -> list[AddedToken]:
        """Every added token: those of `tokenizer.json`, if it decides the ids, and those of other files."""
        own = (self.json or {}).get("added_tokens") or () if self.model is None else ()
        listed = [AddedToken.read(token, token["id"], bool(token.get("special"))) for token in own]
        return [*listed, *self.added]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides ids (see `tokenizer.fingerprint`): equal ones give equal ids."""
        core = of_model(self.model) if self.model is not None else of_json(self.json or {})
        beside = [[token.id, token.content, token.special, token.flags] for token in self.added]
        return join(core, [self.special_id("eos"), self.bos_id, beside])

    def is_text(self, index: int) -> bool:
        """Return whether an id can occur in the ids of a text: it has a piece and is not special."""
        if not 0 <= index < self.size or not self.pieces[index]:
            return False
        if self.model is not None and index < len(self.model.pieces):
            return self.model.pieces[index].type not in (
                TokenPiece.CONTROL,
                TokenPiece.UNKNOWN,
                TokenPiece.UNUSED,
            )
        return all(token.id != index or not token.special for token in self.added_vocabulary)


def open_tokenizer(path: str | Path) -> Tokenizer:
    """Read the tokenizer at `path`: a directory, a SentencePiece `.model` file or a `tokenizer.json`.

    In a directory `tokenizer.model` decides, with the tokens that the other files there add to it;
    `tokenizer.json` decides if there is no `tokenizer.model`, or if that is a tiktoken list, as in LLaMA 3.

    Raises:
        UserError: there is no tokenizer, its file is damaged, or its files are of different tokenizers.
    """
    path = Path(path)
    directory = path.is_dir()
    if directory:
        candidates = [path / MODEL_FILE, path / JSON_FILE]
        files = [file for file in candidates if file.is_file()]
        found = next((file for file in files if len(files) == 1 or not _is_tiktoken(file)), None)
        if found is None:
            raise UserError(
                f"has neither {MODEL_FILE} nor {JSON_FILE}", file=path, fix="is it a tokenizer's directory?"
            )
        path = found
    if not path.is_file():
        raise UserError("does not exist", file=path, fix="name a tokenizer's directory or a `.model` file")
    config = _optional_json(path.parent / CONFIG_FILE)
    if path.suffix == ".json":
        read = Tokenizer(path, None, _checked_json(path), config, directory=directory)
    else:
        read = Tokenizer(path, _read_model(path), None, config, directory=directory)
    return _with_beside(read) if directory else read


def _with_beside(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer of a directory, with the tokens that the other files there add."""
    folder = tokenizer.path.parent
    other = _optional_json(folder / JSON_FILE) if tokenizer.model is not None else None
    special_map = _optional_json(folder / added.SPECIAL_FILE)
    tokens = added.tokens_beside(
        tokenizer.pieces,
        folder=folder,
        json=other,
        config=tokenizer.config,
        listed=_optional_json(folder / added.ADDED_FILE),
        special_map=special_map,
    )
    whole = replace(tokenizer, config={**special_map, **tokenizer.config}, added=tokens)
    vocabulary = ((other or {}).get("model") or {}).get("vocab")
    for piece, index in vocabulary.items() if isinstance(vocabulary, dict) else ():
        if whole.id_of(piece) != index:
            raise UserError(
                f"has the piece {piece!r} as {index}, and {MODEL_FILE} in the same directory does not:"
                " they are different tokenizers",
                file=folder / JSON_FILE,
                fix="remove the one that the model does not use",
            )
    return whole


def _is_tiktoken(path: Path) -> bool:
    """Return whether a file lists pieces as tiktoken does: base64 and rank, a line each."""
    with open(path, "rb") as file:
        return _TIKTOKEN.match(file.read(1 << 12)) is not None


def _read_model(path: Path) -> spm.ModelProto:
    model = spm.ModelProto()
    try:
        if _is_tiktoken(path):
            fix = "save it with transformers, which writes a tokenizer.json, and name that"
            raise UserError("is a tiktoken list and not a SentencePiece model", file=path, fix=fix)
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError("is not a SentencePiece model", file=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    if not model.pieces:
        raise UserError("is a SentencePiece model without pieces", file=path)
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", file=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    if not isinstance(read, dict):
        raise UserError("is not a JSON object", file=path)
    return read


def _optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist."""
    return _read_json(path) if path.is_file() else {}


def _checked_json(path: Path) -> dict[str, Any]:
    read = _read_json(path)
    model = read.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise UserError("is not a tokenizer with a vocabulary", file=path, field="model.vocab")
    return read
