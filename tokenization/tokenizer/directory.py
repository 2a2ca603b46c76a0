"""Write a tokenizer as a directory that other programs load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.disk import disk_errors, write_atomically
from tokenization.tokenizer import hf_json
from tokenization.tokenizer.added import SPECIAL_FILE, AddedToken
from tokenization.tokenizer.files import CONFIG_FILE, JSON_FILE, MODEL_FILE
from tokenization.tokenizer.settings import Settings


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
    and `settings` are copied from another tokenizer. `PreTrainedTokenizerFast` is named as the class
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
    tokenizer_json = hf_json.from_model(model)
    tokenizer_json["added_tokens"] += [token.to_json() for token in added]
    if settings.post_processor is not None:
        tokenizer_json["post_processor"] = settings.post_processor or None
    elif not config["add_bos_token"]:
        tokenizer_json["post_processor"] = None
    files = {JSON_FILE: tokenizer_json, CONFIG_FILE: config, SPECIAL_FILE: special, **(extra or {})}
    out = Path(out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            text = json.dumps(content, ensure_ascii=False, indent=None if name == JSON_FILE else 2)
            write_atomically(out / name, f"{text}\n")
        for name, whole in settings.files.items():
            (out / name).parent.mkdir(exist_ok=True)
            write_atomically(out / name, whole)
        write_atomically(out / MODEL_FILE, model.SerializeToString(deterministic=True))


def _special_tokens(model: spm.ModelProto) -> dict[str, str]:
    spec = model.trainer_spec
    ids = {name: getattr(spec, f"{name}_id") for name in ("bos", "eos", "unk", "pad")}
    known = {name: index for name, index in ids.items() if 0 <= index < len(model.pieces)}
    return {f"{name}_token": model.pieces[index].piece for name, index in known.items()}
