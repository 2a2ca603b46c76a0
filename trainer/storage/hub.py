"""Find model directories, on this disk or on the Hugging Face hub, and copy their small files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenization.disk import sync_directory
from tokenization.errors import InfrastructureError, UserError
from trainer.storage.safetensors import GENERATION

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "extension.json",
)
"""All that a tokenizer directory may consist of."""


def local_directory(model: str | Path, field: str) -> Path:
    """The directory of a model: itself, or where the whole of a hub id has been fetched to.

    Raises:
        UserError, InfrastructureError: as `fetch`.
    """
    if Path(model).is_dir():
        return Path(model)
    return fetch_from_hub(model, ["*.json", "*.safetensors", "*.model"], field)


def fetch_from_hub(model: str | Path, files: list[str], field: str | None) -> Path:
    """The directory to which `files` (patterns) of a hub id have been fetched, or lay already.

    Raises:
        UserError: `model` is a path and lacks them, or the hub does not have it.
        InfrastructureError: the hub cannot be reached.
    """
    name = str(model)
    if Path(name).exists():
        fix = "give a directory with config.json and the weights, such as `rewarm export` writes"
        raise UserError("is no model directory: it has no config.json", field=field, value=name, fix=fix)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        fix = "give a model directory or a hub id, org/name"
        raise UserError("does not exist", field=field, value=name, fix=fix)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except LocalEntryNotFoundError as error:
        what = f"{field}: {name!r} is no directory here, and the hub cannot be reached to fetch it"
        raise InfrastructureError(what) from error
    except (HfHubHTTPError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"is no directory here and not on the hub ({reason})", field=field, value=name
        ) from error


def write_model_config(
    config: Mapping[str, Any], directory: str | Path, generation: Mapping[str, Any] | None = None
) -> None:
    """Writes and syncs config.json, by which transformers knows a model, and generation_config.json if given.

    Raises:
        OSError: the disk is full or fails.
    """
    for name, content in (("config.json", config), (GENERATION, generation)):
        if content is not None:
            path = Path(directory) / name
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            sync_directory(path)


def copy_tokenizer(tokenizer: str | Path, directory: str | Path) -> None:
    """Copies the files of a tokenizer (a directory, or a single `.model` file) byte for byte.

    Raises:
        UserError: there are none.
    """
    source = Path(tokenizer)
    if source.is_file():
        found = {source: "tokenizer.json" if source.suffix == ".json" else "tokenizer.model"}
    else:
        found = {source / name: name for name in TOKENIZER_FILES if (source / name).is_file()}
    if not found:
        fix = "give a tokenizer directory or a SentencePiece .model file"
        raise UserError("holds no tokenizer", field="tokenizer", value=str(tokenizer), fix=fix)
    for path, name in found.items():
        shutil.copyfile(path, Path(directory) / name)
