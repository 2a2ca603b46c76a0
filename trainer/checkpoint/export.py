"""Trained weights → a directory that AutoModelForCausalLM and AutoTokenizer load anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tokenization.directories import whole_directory
from tokenization.vocabulary import Tokenizer, open_tokenizer
from trainer.errors import UserError
from trainer.model.architecture import EMBEDDINGS, file_name
from trainer.model.directory import MAX_SHARD_BYTES, Weight, WeightsWriter
from trainer.model.loss import plain_name
from trainer.model.tokenizer import write_tokenizer
from trainer.model.tokens import TOKENIZER, own_tokenizer, with_special
from trainer.scheduler.state import EXPORTED

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Card:
    """What a reader of the exported model must know."""

    name: str
    base: str | None = None
    """What training went on from; None for random weights."""
    tokens: int = 0
    """Tokens trained in the whole run."""
    phases: Sequence[Mapping[str, Any]] = ()
    """Per phase a mapping with the same keys: name, tokens, mixture, schedule, …."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Metric → value, forgetting among them."""
    lineage: Sequence[Mapping[str, Any]] = ()
    """The records of lineage.jsonl that are worth telling."""
    state: Mapping[str, Any] | None = None
    """Where the run stood (`scheduler.state.RunState`), for a run that has this model as its base."""


def export(
    weights: Iterable[Weight],
    config: PretrainedConfig,
    tokenizer: str | Path,
    out: str | Path,
    *,
    vocab_size: int,
    dtype: Literal["fp32", "bf16", "fp16"],
    card: Card,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes `weights` (made one at a time, under `CausalLM`'s names or Hugging Face's) and their config.

    Embedding rows beyond the tokenizer's `vocab_size` pieces are padding and are left out, so that no one
    can sample them. The tokenizer is proved to give the ids of the training. `generation` is what the base
    had in generation_config.json. Returns a line for each thing that is not as the base had it.

    Raises:
        UserError: `out` is not empty (unless `overwrite`), the tokenizer is missing or cannot be written so
            that transformers gives its ids, there is no input embedding in `weights`, or a weight does not
            fit into `dtype`.
        InfrastructureError: the disk is full or cannot be written.
    """
    input_name, output_name = EMBEDDINGS[config.model_type]
    written: set[str] = set()
    opened = open_tokenizer(tokenizer)
    with whole_directory(out, overwrite=overwrite) as draft:
        lines = _write_config(config, vocab_size, dtype, draft, opened, generation)
        local_base = card.base if card.base and Path(card.base).is_dir() else None
        proved = write_tokenizer(opened, draft, own_tokenizer(local_base) if local_base else None)
        writer = WeightsWriter(draft, max_shard_bytes)
        for weight in weights:
            name = file_name(config.model_type, plain_name(weight.name))
            if name in written or (name == output_name and config.tie_word_embeddings):
                continue
            written.add(name)
            shape = weight.shape
            if name in (input_name, output_name):
                shape = (min(shape[0], vocab_size), *shape[1:])
            writer.add(Weight(name, shape, DTYPES[dtype], partial(_made, weight, name, shape, DTYPES[dtype])))
        if input_name not in written:
            raise UserError("is not among the weights to export", value=input_name)
        writer.close()
        (draft / "README.md").write_text(render(card, dtype, proved.loader), encoding="utf-8")
        if card.state is not None:
            (draft / EXPORTED).write_text(json.dumps(card.state), encoding="utf-8")
    return [*lines, *proved.lines]


def _made(weight: Weight, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    made = weight.make()
    return _cast(name, made if made.shape == shape else made[: shape[0]], dtype)


def _cast(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`, refused if that makes a finite value infinite."""
    cast = weight.to(dtype)
    if dtype is torch.float16 and not torch.isfinite(cast).all() and torch.isfinite(weight).all():
        largest = weight.abs().max().item()
        raise UserError(f"reaches {largest:.3g}, beyond fp16", value=name, mend="export in bf16 or fp32")
    return cast


def _write_config(
    config: PretrainedConfig,
    vocab_size: int,
    dtype: str,
    draft: Path,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any] | None,
) -> list[str]:
    """config.json and generation_config.json for those who use the model, not for those who train it."""
    fields, lines = with_special(config.to_dict(), tokenizer, "config.json")
    fields |= {"vocab_size": vocab_size, "use_cache": True, TOKENIZER: tokenizer.fingerprint}
    told = type(config).from_dict(fields)
    told.dtype = DTYPES[dtype]
    told.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    told.save_pretrained(draft)
    if generation is None:
        GenerationConfig.from_model_config(told).save_pretrained(draft)
        return lines
    settings, more = with_special(generation, tokenizer, "generation_config.json")
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (draft / "generation_config.json").write_text(f"{text}\n", encoding="utf-8")
    return [*lines, *more]


def render(card: Card, dtype: str, tokenizer_loader: str = "AutoTokenizer") -> str:
    """The model card, in Markdown with the metadata block of the hub."""
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [rewarm]"]
    if card.base and _is_hub_id(card.base):
        head.append(f"base_model: {card.base}")
    origin = f"continues `{card.base}`" if card.base else "starts from random weights"
    parts = [
        "\n".join([*head, "---"]),
        f"# {card.name}",
        f"This model {origin}, trained on {card.tokens:,} tokens with rewarm; weights in {dtype}.",
    ]
    for title, rows in (("Phases", card.phases), ("Lineage", card.lineage)):
        if rows:
            parts += [f"## {title}", _table(rows)]
    if card.evaluation:
        measured = [{"metric": name, "value": f"{value:.4f}"} for name, value in card.evaluation.items()]
        parts += ["## Evaluation", _table(measured)]
        parts.append("Forgetting is upstream bits per byte now minus the base model's.")
    parts += ["## Use", _USE.replace("AutoTokenizer", tokenizer_loader)]
    return "\n\n".join(parts) + "\n"


def _is_hub_id(base: str) -> bool:
    """Whether a base is `owner/name` on the hub rather than a directory here."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) is not None and not Path(base).is_dir()


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
```"""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a column for each key, in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [
        [str(row.get(column, "")).replace("|", "\\|").replace("\n", " ") for column in columns]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
