"""Directories that are written whole or not at all, and a tokenizer as one that others load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization import tokenizer_json
from tokenization.added import SPECIAL_FILE, AddedToken
from tokenization.errors import InfrastructureError, UserError
from tokenization.settings import Settings
from tokenization.shard_format import sync, write_atomically
from tokenization.tokenizer_files import CONFIG_FILE, JSON_FILE, MODEL_FILE

MADE_BY_US = ("*.json", "*.model", "*.safetensors", "*.jinja", "merges.txt", "README.md")
"""Names of the files that a tokenizer's or a model's directory may consist of."""


def write_directory(
    out: str | Path,
    model: spm.ModelProto,
    extra: Mapping[str, Any] | None = None,
    *,
    added: Sequence[AddedToken] = (),
    settings: Settings | None = None,
) -> None:
    """Write `model` as a directory for SentencePiece, `tokenizers` and `transformers`; they all give its ids.

    `extra` maps names of further JSON files to what they hold, `added` are tokens beyond the model's pieces,
    and `settings` are what another tokenizer hands down. `PreTrainedTokenizerFast` is named as the class
    since `LlamaTokenizer` rebuilds the rules and then differs from SentencePiece.

    Raises:
        InfrastructureError: the directory cannot be written.
    """
    settings = settings or Settings()
    special = {**_special_tokens(model), **settings.special}
    special = {name: value for name, value in special.items() if value is not None}
    config = {
        "clean_up_tokenization_spaces": False,
        "add_eos_token": False,
        "add_bos_token": "bos_token" in special,
        **special,
        **settings.config,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    held = tokenizer_json.from_model(model)
    held["added_tokens"] += [token.to_json() for token in added]
    if settings.post_processor is not None:
        held["post_processor"] = settings.post_processor or None
    elif not config["add_bos_token"]:
        held["post_processor"] = None
    files = {JSON_FILE: held, CONFIG_FILE: config, SPECIAL_FILE: special, **(extra or {})}
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            text = json.dumps(content, ensure_ascii=False, indent=None if name == JSON_FILE else 2)
            write_atomically(out / name, f"{text}\n")
        for name, whole in settings.files.items():
            write_atomically(out / name, whole)
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


def refuse_existing(out: str | Path, *, overwrite: bool = False, field: str = "--out") -> None:
    """Refuse an `out` that holds something; with `overwrite`, one that holds more than a model or tokenizer.

    Raises:
        UserError: what is there would be lost.
    """
    out = Path(out)
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        mend = "give a new directory, or --overwrite"
        raise UserError("exists and is not empty", field=field, value=str(out), mend=mend)
    if out.is_symlink() or not out.is_dir():
        mend = "give a new directory"
        raise UserError("is not a directory, which is all that --overwrite replaces", field=field,
                        value=str(out), mend=mend)  # fmt: skip
    for path in sorted(out.iterdir()):
        if path.is_dir() or not any(path.match(pattern) for pattern in MADE_BY_US):
            what = f"holds {path.name}, which is not of a tokenizer or a model: --overwrite would lose it"
            raise UserError(what, field=field, value=str(out), mend="give a new directory")


@contextmanager
def whole_directory(out: str | Path, field: str = "--out", *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill that becomes `out` once the block has ended well, and vanishes if it has not.

    With `overwrite` it takes the place of what `out` held, which stays until then.

    Raises:
        UserError: `out` exists and is not an empty directory, see `refuse_existing`.
        InfrastructureError: the disk is full or cannot be written.
    """
    refuse_existing(out, overwrite=overwrite, field=field)
    out = Path(out)
    draft, before = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("partial", "before"))
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in [*draft.iterdir(), draft]:
            sync(path)
        if overwrite and out.is_dir():
            out.rename(before)
        draft.rename(out)
        sync(out.parent)
    except OSError as error:
        raise InfrastructureError(f"{out}: cannot be written ({error}); nothing was left there") from error
    finally:
        if before.is_dir() and not out.exists():
            before.rename(out)
        for gone in (draft, before):
            shutil.rmtree(gone, ignore_errors=True)
