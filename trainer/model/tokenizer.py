"""A model's tokenizer, written beside its weights and proved to be the one that it is trained with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.files import CONFIG_FILE, JSON_FILE, Tokenizer, open_tokenizer
from tokenization.tokenizer.proof import LOADERS, TransformersClass, difference
from tokenization.tokenizer.settings import TEMPLATE_FILE, carried, template_files
from trainer.storage.hub import TOKENIZER_FILES, copy_tokenizer

OWN_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers that takes `tokenizer.json` as it is."""


@dataclass(frozen=True)
class Written:
    """How a tokenizer was written."""

    loader: TransformersClass
    """The class of transformers that loads it with the ids that it has in training."""
    lines: list[str] = field(default_factory=list)
    """Lines that tell the user how."""


def write_tokenizer(tokenizer: Tokenizer, directory: Path, base: Tokenizer | None = None) -> Written:
    """Write the files of `tokenizer` into a model's directory, so that transformers gives its ids there.

    The files are copied as they are where that does it. Else the class is changed to the one that takes
    `tokenizer.json` as it is, or the whole is written again from the SentencePiece model, which comes first
    where that is all there is. config.json must be there before. `base` hands down a chat template and other
    settings that `tokenizer` does not have.

    Raises:
        UserError: transformers gives other ids with each of these.
    """
    ways: list[Callable[[], list[str]]] = [lambda: _copy(tokenizer, directory)]
    if tokenizer.directory:
        ways.append(lambda: _copy_with_own_class(tokenizer, directory))
    if tokenizer.model is not None and tokenizer.model.trainer_spec.model_type == spm.TrainerSpec.BPE:
        whole = tokenizer.directory and (tokenizer.path.parent / JSON_FILE).is_file()
        ways.insert(len(ways) if whole else 0, lambda: _write_anew(tokenizer, directory, base))
    found: list[str] = []
    for loader in LOADERS:
        for way in ways:
            for path in [*(directory / name for name in TOKENIZER_FILES), *template_files(directory)]:
                path.unlink(missing_ok=True)
            lines = way()
            wrong = difference(directory, tokenizer, loader) or _another(directory, tokenizer)
            if wrong is None:
                _tell_template(directory)
                lines += _not_handed_down(base, tokenizer, directory)
                if loader != "AutoTokenizer":
                    lines.append(f"the export's tokenizer is to be loaded with {loader}: with {found[0]}")
                return Written(loader, lines)
            found.append(f"{loader} {wrong}")
    what = f"cannot be written so that transformers gives the ids of the training: with {found[0]}"
    raise UserError(what, file=tokenizer.path, fix="take a BPE tokenizer with a tokenizer.json")


def _tell_template(directory: Path) -> None:
    """Write the chat template into tokenizer_config.json too, where readers before transformers 4.51 look."""
    template, config = directory / TEMPLATE_FILE, directory / CONFIG_FILE
    if template.is_file() and config.is_file():
        told = json.loads(config.read_text(encoding="utf-8"))
        told.setdefault("chat_template", template.read_text(encoding="utf-8"))
        config.write_text(f"{json.dumps(told, ensure_ascii=False, indent=2)}\n", encoding="utf-8")


def _another(directory: Path, tokenizer: Tokenizer) -> str | None:
    """Whether what was written is known by another fingerprint than `tokenizer`."""
    written = open_tokenizer(directory).fingerprint
    return None if written == tokenizer.fingerprint else f"its fingerprint is {written}"


def _copy(tokenizer: Tokenizer, directory: Path) -> list[str]:
    copy_tokenizer(tokenizer.path.parent if tokenizer.directory else tokenizer.path, directory)
    if not tokenizer.directory and tokenizer.model is None:
        _write_config(directory, tokenizer, {})
    return []


def _copy_with_own_class(tokenizer: Tokenizer, directory: Path) -> list[str]:
    copy_tokenizer(tokenizer.path.parent, directory)
    _write_config(directory, tokenizer, dict(tokenizer.config))
    was = tokenizer.config.get("tokenizer_class")
    where = tokenizer.path.parent / CONFIG_FILE
    return [f"{where}: tokenizer_class {was} is {OWN_CLASS} in the copy, with which the ids are right"]


def _write_config(directory: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    named = {
        f"{name}_token": tokenizer.pieces[index]
        for name in ("bos", "eos", "pad", "unk")
        if (index := tokenizer.special_id(name)) is not None
    }
    told = {**named, **config, "tokenizer_class": OWN_CLASS}
    text = json.dumps(told, ensure_ascii=False, indent=2)
    (directory / CONFIG_FILE).write_text(f"{text}\n", encoding="utf-8")


def _write_anew(tokenizer: Tokenizer, directory: Path, base: Tokenizer | None) -> list[str]:
    assert tokenizer.model is not None
    settings = carried(tokenizer, tokenizer.id_of)
    if base is not None and not (tokenizer.directory and tokenizer.config):
        settings = carried(base, tokenizer.id_of)
    named = {
        f"{name}_token": None if (index := tokenizer.special_id(name)) is None else tokenizer.pieces[index]
        for name in ("bos", "eos")
    }
    settings = replace(settings, config={**settings.config, **named})
    write_directory(directory, tokenizer.model, added=tokenizer.added, settings=settings)
    told = f"{tokenizer.path}: a tokenizer.json was made from it, with which transformers gives its ids"
    return [told, *settings.left_out]


def _not_handed_down(base: Tokenizer | None, tokenizer: Tokenizer, directory: Path) -> list[str]:
    """A line for each setting that the base has and the directory has not."""
    if base is None:
        return []
    before = carried(base, base.id_of)
    path = directory / CONFIG_FILE
    now = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (directory / TEMPLATE_FILE).is_file():
        now["chat_template"] = True
    had = {**before.config, **({"chat_template": True} if TEMPLATE_FILE in before.files else {})}
    kept = ("chat_template", "model_max_length", "padding_side", "pad_token")
    lost = [name for name in kept if had.get(name) is not None and now.get(name) is None]
    where = base.path.parent
    return [f"{where}: its {name} is left out: {tokenizer.path} does not have it" for name in lost]
