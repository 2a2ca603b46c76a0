"""Settings of a tokenizer other than its ids: chat template, limits, named tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenization.tokenizer.added import content_of, named_tokens
from tokenization.tokenizer.files import CONFIG_FILE, JSON_FILE, Tokenizer

TEMPLATE_FILE = "chat_template.jinja"

TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
"""Where a tokenizer has more chat templates than one: a file each, under today's name or the earlier one."""

SEVERAL = ("additional_special_tokens", "extra_special_tokens")

_CARRIED = (
    *("chat_template", "model_max_length", "padding_side", "truncation_side", "model_input_names"),
    *("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces"),
)

_OF_A_CLASS = {
    *("tokenizer_class", "added_tokens_decoder", "name_or_path", "special_tokens_map_file", "backend"),
    *("sp_model_kwargs", "legacy", "use_fast", "is_local", "tokenizer_file", "vocab_file", "errors"),
    *("use_default_system_prompt", "add_prefix_space", "spaces_between_special_tokens", "local_files_only"),
    *("split_special_tokens", "from_slow"),
}
"""Settings of one of transformers' classes, without effect once `tokenizer.json` holds the rules."""


@dataclass(frozen=True)
class Settings:
    """Settings that are copied to another tokenizer, and notes on those that are not."""

    config: dict[str, Any] = field(default_factory=dict)
    """Fields for `tokenizer_config.json`."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Whole files by name."""
    post_processor: Mapping[str, Any] | None = None
    """How `tokenizer.json` puts BOS and EOS around a text; None without such a file."""
    left_out: list[str] = field(default_factory=list)
    """A line for each setting that is not copied."""

    @property
    def special(self) -> dict[str, Any]:
        """The named tokens among the fields."""
        return {
            name: value for name, value in self.config.items() if name.endswith("_token") or name in SEVERAL
            if not name.startswith("add_")
        }  # fmt: skip


def carried(source: Tokenizer, known: Callable[[str], int | None]) -> Settings:
    """Return the settings of `source` for a tokenizer in which `known` maps a piece to its id or None.

    A token that the other tokenizer does not have, or has with another id, is left out, and so are settings
    of one class of transformers.
    """
    if not source.directory:
        return Settings()
    folder, settings = source.path.parent, Settings()
    for name, value in source.config.items():
        if name in _CARRIED:
            settings.config[name] = value
        elif name in SEVERAL or name.endswith("_token"):
            tokens = list(named_tokens({name: value}))
            ids = {token: known(token) for token in tokens}
            missing = [token for token, index in ids.items() if index is None or index != source.id_of(token)]
            if missing:
                lost = ", ".join(map(repr, missing))
                settings.left_out.append(f"{folder / CONFIG_FILE}: {name} {lost} is left out: not a piece")
            elif name in SEVERAL:
                settings.config[name] = value
            else:
                settings.config[name] = content_of(value)
        elif name not in _OF_A_CLASS and value is not None:
            settings.left_out.append(f"{folder / CONFIG_FILE}: {name} is left out")
    if (folder / TEMPLATE_FILE).is_file():
        settings.files[TEMPLATE_FILE] = (folder / TEMPLATE_FILE).read_bytes()
    for path in template_files(folder):
        settings.files[str(path.relative_to(folder))] = path.read_bytes()
    return Settings(settings.config, settings.files, _post_processor(folder), settings.left_out)


def template_files(folder: Path) -> list[Path]:
    """The further chat templates in a tokenizer's directory."""
    return [path for name in TEMPLATE_FOLDERS for path in sorted((folder / name).glob("*.jinja"))]


def _post_processor(folder: Path) -> Mapping[str, Any] | None:
    if not (folder / JSON_FILE).is_file():
        return None
    try:
        found = json.loads((folder / JSON_FILE).read_text(encoding="utf-8")).get("post_processor")
    except ValueError:
        return None
    return found if isinstance(found, Mapping) else {}
