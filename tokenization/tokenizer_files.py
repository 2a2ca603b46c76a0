"""A tokenizer on disk: found, identified by its fingerprint, and written as a directory that others load."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization import tokenizer_json
from tokenization.errors import InfrastructureError, UserError
from tokenization.shard_format import write_atomically

Piece = spm.ModelProto.SentencePiece
MODEL_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
_TIKTOKEN = re.compile(rb"(?:[A-Za-z0-9+/]+=* \d+\r?\n){2}")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as it lies on disk; `model` is the truth where there is one, else `json`."""

    path: Path
    """The file that it was read from."""
    model: spm.ModelProto | None
    json: Mapping[str, Any] | None
    config: Mapping[str, Any]
    """`tokenizer_config.json`, or empty."""

    @cached_property
    def pieces(self) -> list[str]:
        """Every piece, by id."""
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
            UserError: the tokenizer does not name one.
        """
        return self._special_id("eos", "</s>")

    def _special_id(self, name: str, usual: str) -> int:
        if self.model is not None:
            index = int(getattr(self.model.trainer_spec, f"{name}_id"))
            if 0 <= index < self.size:
                return index
        named = self.config.get(f"{name}_token", usual)
        content = named.get("content") if isinstance(named, Mapping) else named
        if content not in self.pieces:
            raise UserError(
                f"has no {name.upper()} token",
                file=self.path,
                mend=f"name it as {name}_token in tokenizer_config.json beside it",
            )
        return self.pieces.index(content)

    @cached_property
    def fingerprint(self) -> str:
        """Of the ordered pieces, scores, types and rules: equal fingerprints give equal ids."""
        return (
            _model_fingerprint(self.model) if self.model is not None else _json_fingerprint(self.json or {})
        )


def open_tokenizer(path: str | Path) -> Tokenizer:
    """Read the tokenizer at `path`: a directory, a SentencePiece `.model` file or a `tokenizer.json`.

    In a directory `tokenizer.model` is the truth; `tokenizer.json` serves where there is none, or where it
    is a list of tiktoken's, as LLaMA 3 has one by that name.

    Raises:
        UserError: there is no tokenizer, or its file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        candidates = [path / MODEL_FILE, path / JSON_FILE]
        files = [file for file in candidates if file.is_file()]
        found = next((file for file in files if len(files) == 1 or not _is_tiktoken(file)), None)
        if found is None:
            raise UserError(
                f"has neither {MODEL_FILE} nor {JSON_FILE}", file=path, mend="is it a tokenizer's directory?"
            )
        path = found
    if not path.is_file():
        raise UserError("is not there", file=path, mend="name a tokenizer's directory or a `.model` file")
    config_path = path.parent / CONFIG_FILE
    config = _read_json(config_path) if config_path.is_file() else {}
    if path.suffix == ".json":
        return Tokenizer(path, None, _checked_json(path), config)
    return Tokenizer(path, _read_model(path), None, config)


def added_tokens(tokenizer: Tokenizer) -> dict[Path, list[str]]:
    """By file, the pieces that the files beside a `tokenizer.model` name: transformers reads them all.

    Raises:
        UserError: a file is damaged.
    """
    folder, found = tokenizer.path.parent, {}
    if (path := folder / JSON_FILE).is_file():
        found[path] = open_tokenizer(path).pieces
    if (path := folder / "added_tokens.json").is_file():
        found[path] = list(_read_json(path))
    decoder = tokenizer.config.get("added_tokens_decoder") or {}
    found[folder / CONFIG_FILE] = [token["content"] for token in decoder.values()]
    return found


def fingerprint(path: str | Path) -> str:
    """The fingerprint of the tokenizer at `path`, a directory or a file."""
    return open_tokenizer(path).fingerprint


def write_directory(out: str | Path, model: spm.ModelProto, extra: Mapping[str, Any] | None = None) -> None:
    """Write `model` as a directory for SentencePiece, `tokenizers` and `transformers`; they all give its ids.

    `extra` maps names of further JSON files to what they hold. `PreTrainedTokenizerFast` is named as the
    class since `LlamaTokenizer` rebuilds the rules and then differs from SentencePiece.

    Raises:
        InfrastructureError: the directory cannot be written.
    """
    special = _special_tokens(model)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": "bos_token" in special,
        "add_eos_token": False,
    }
    files = {
        JSON_FILE: tokenizer_json.from_model(model),
        CONFIG_FILE: config,
        "special_tokens_map.json": special,
        **(extra or {}),
    }
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, held in files.items():
            text = json.dumps(held, ensure_ascii=False, indent=None if name == JSON_FILE else 2)
            write_atomically(out / name, f"{text}\n")
        write_atomically(out / MODEL_FILE, model.SerializeToString(deterministic=True))
    except OSError as error:
        raise InfrastructureError(f"{out}: cannot be written ({error.strerror or error})") from error


def _special_tokens(model: spm.ModelProto) -> dict[str, str]:
    spec = model.trainer_spec
    ids = {
        "bos_token": spec.bos_id,
        "eos_token": spec.eos_id,
        "unk_token": spec.unk_id,
        "pad_token": spec.pad_id,
    }
    return {name: model.pieces[index].piece for name, index in ids.items() if 0 <= index < len(model.pieces)}


def _is_tiktoken(path: Path) -> bool:
    """Whether a file lists pieces as tiktoken does: base64 and rank, a line each."""
    with open(path, "rb") as file:
        return _TIKTOKEN.match(file.read(1 << 12)) is not None


def _read_model(path: Path) -> spm.ModelProto:
    model = spm.ModelProto()
    try:
        if _is_tiktoken(path):
            mend = "save it with transformers, which writes a tokenizer.json, and name that"
            raise UserError("is a list of tiktoken's and not a SentencePiece model", file=path, mend=mend)
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


def _checked_json(path: Path) -> dict[str, Any]:
    read = _read_json(path)
    model = read.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise UserError("is not a tokenizer with a vocabulary", file=path, field="model.vocab")
    return read


def _model_fingerprint(model: spm.ModelProto) -> str:
    trainer, rules = model.trainer_spec, model.normalizer_spec
    digest = xxhash.xxh3_128(b"sentencepiece 1")
    flags = (
        trainer.model_type,
        trainer.byte_fallback,
        trainer.treat_whitespace_as_suffix,
        rules.add_dummy_prefix,
        rules.remove_extra_whitespaces,
        rules.escape_whitespaces,
        trainer.eos_id,
    )
    digest.update(repr([int(flag) for flag in flags]).encode())
    for text in (rules.precompiled_charsmap, *(piece.piece.encode() for piece in model.pieces)):
        digest.update(struct.pack("<Q", len(text)) + text)
    for piece in model.pieces:
        digest.update(struct.pack("<fB", piece.score, piece.type))
    return digest.hexdigest()


def _json_fingerprint(held: Mapping[str, Any]) -> str:
    rules = {name: held.get(name) for name in ("normalizer", "pre_tokenizer", "added_tokens", "model")}
    text = json.dumps(rules, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(b"tokenizer.json 1" + text.encode())
