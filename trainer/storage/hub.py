"""Find model directories, on disk or on the Hugging Face hub, and copy their small files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenization.disk import write_atomically
from tokenization.errors import InfrastructureError, RewarmError, UserError, did_you_mean
from tokenization.tokenizer.settings import template_files

GENERATION = "generation_config.json"

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
"""Every file that a tokenizer directory may hold, beside its `TEMPLATE_FOLDERS`."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_FOLDERS = frozenset(
    {
        "model",
        "models",
        "base",
        "bases",
        "checkpoint",
        "checkpoints",
        "ckpt",
        "ckpts",
        "weights",
        "pretrained",
    }
    | {"run", "runs", "data", "export", "exports", "out", "output", "outputs", "tokenizer", "tokenizers"}
)
"""First parts of a path that people give to folders of their own: `models/llama` is not a hub id."""

_BUSY = (408, 429, 500, 502, 503, 504)
"""Answers of a server that a later request may not get again."""


def local_directory(model: str | Path, field: str) -> Path:
    """Return the directory of a model: `model` itself, or the download of a hub id.

    Raises:
        UserError, InfrastructureError: as `fetch_from_hub`.
    """
    if Path(model).is_dir():
        return Path(model)
    return fetch_from_hub(model, ["*.json", "*.safetensors", "*.model"], field)


def fetch_from_hub(model: str | Path, files: list[str], field: str | None) -> Path:
    """Fetch `files` (patterns) of a hub id, unless they are cached, and return their directory.

    Raises:
        UserError: `model` is a path without config.json or a path that does not exist, the hub does not have
            it, or it is not cached and the hub may not be asked (HF_HUB_OFFLINE).
        InfrastructureError: the hub cannot be reached now.
    """
    name = str(model)
    if Path(name).exists():
        fix = "give a directory with config.json and the weights, such as `rewarm export` writes"
        if (Path(name) / "params.json").is_file():
            fix = (
                "these are Meta's own files: get the model in Hugging Face form (meta-llama/Llama-2-7b-hf),"
                " or convert them with convert_llama_weights_to_hf.py of transformers 4"
            )
        raise UserError("is not a model directory: it has no config.json", field=field, value=name, fix=fix)
    if not _is_hub_id(name):
        near = did_you_mean(Path(name).name, _names_in(Path(name).parent))
        fix = near or "give a model directory or a hub id, org/name"
        raise UserError("does not exist", field=field, value=name, fix=fix)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, OfflineModeIsEnabled) or is_offline_mode():
            what = "is not a directory and is not cached, and HF_HUB_OFFLINE forbids to fetch it from the hub"
            fix = "give a model directory, or fetch it where there is a network: hf download " + name
            raise UserError(what, field=field, value=name, fix=fix) from error
        what = (
            f"{field}: {name!r} is not a directory, and the hub cannot be reached to fetch it; "
            "correct the path, or start again when the hub answers"
        )
        raise InfrastructureError(what) from error
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        if getattr(error.response, "status_code", None) in _BUSY:
            raise InfrastructureError(f"{field}: {name!r}: the hub does not answer ({reason})") from error
        what = f"is neither a directory nor a model on the hub ({reason})"
        raise UserError(what, field=field, value=name) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        what = f"is neither a directory nor a hub id ({reason})"
        raise UserError(what, field=field, value=name) from error


def is_offline_mode() -> bool:
    """Tell whether the environment forbids to ask the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_hub_id(name: str) -> bool:
    """Tell whether a name that is not a path here can be a hub id: `org/name`, and `org` not a folder here.

    A misspelt path is not asked of the hub: where a node has no network, the job would be requeued for ever.
    """
    if _HUB_ID.fullmatch(name) is None:
        return False
    folder = name.split("/")[0]
    return folder.lower() not in _FOLDERS and not Path(folder).exists()


def _names_in(folder: Path) -> list[str]:
    """The names in a folder; none if it cannot be read."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def write_model_config(
    config: Mapping[str, Any], directory: str | Path, generation: Mapping[str, Any] | None = None
) -> None:
    """Write and sync config.json, which tells transformers what the model is, and generation_config.json.

    Raises:
        OSError: the disk is full or fails.
    """
    for name, content in (("config.json", config), (GENERATION, generation)):
        if content is not None:
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            write_atomically(Path(directory) / name, text)


def copy_tokenizer(tokenizer: str | Path, directory: str | Path) -> None:
    """Copy the files of a tokenizer (a directory, or a single `.model` file) byte for byte.

    Raises:
        UserError: it has none.
    """
    source = Path(tokenizer)
    if source.is_file():
        found = {source: "tokenizer.json" if source.suffix == ".json" else "tokenizer.model"}
    else:
        found = {source / name: name for name in TOKENIZER_FILES if (source / name).is_file()}
        if found:
            found |= {path: str(path.relative_to(source)) for path in template_files(source)}
    if not found:
        fix = "give a tokenizer directory or a SentencePiece .model file"
        raise UserError("does not hold a tokenizer", field="tokenizer", value=str(tokenizer), fix=fix)
    for path, name in found.items():
        (Path(directory) / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, Path(directory) / name)


def read_generation(model: str | Path) -> dict[str, Any] | None:
    """What a model's directory or hub id says of how to generate; None where it says nothing.

    Raises:
        UserError: the file is damaged.
    """
    directory = Path(model)
    with suppress(RewarmError):
        directory = directory if directory.exists() else fetch_from_hub(model, [GENERATION], None)
    path = directory / GENERATION
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", file=path, fix="copy the model again") from error
    if not isinstance(read, dict):
        raise UserError("is not a mapping of settings", file=path, fix="copy the model again")
    return read
