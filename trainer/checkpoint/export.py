"""Export trained weights to a directory that AutoModelForCausalLM and AutoTokenizer load anywhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tokenization.errors import UserError
from tokenization.tokenizer import files
from trainer.checkpoint import rank_files
from trainer.checkpoint.card import Card, card_of, render_card
from trainer.checkpoint.manifest import MARKER, Checkpoint
from trainer.model.architecture import EMBEDDINGS, file_name, read_config
from trainer.model.loss import plain_name
from trainer.recipe.load import parse_recipe
from trainer.storage.disk import whole_directory
from trainer.storage.hub import copy_tokenizer
from trainer.storage.run_directory import EXPORTED
from trainer.storage.safetensors import DTYPES, MAX_SHARD_BYTES, Weight, WeightsWriter


def export_model(
    weights: Iterable[Weight],
    config: PretrainedConfig,
    tokenizer: str | Path,
    out: str | Path,
    *,
    vocab_size: int,
    dtype: Literal["fp32", "bf16", "fp16"],
    card: Card,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `weights` (made one at a time, with the names of `CausalLM` or Hugging Face) and their config.

    Embedding rows beyond the tokenizer's `vocab_size` pieces are padding and are not exported, so that
    they cannot be sampled. The tokenizer's files are copied byte for byte.

    Raises:
        UserError: `out` is not empty, the tokenizer is missing, `weights` have no input embedding, or a
            weight does not fit into `dtype`.
        InfrastructureError: the disk is full or cannot be written.
    """
    input_name, output_name = EMBEDDINGS[config.model_type]
    written: set[str] = set()
    with whole_directory(out) as draft:
        copy_tokenizer(tokenizer, draft)
        writer = WeightsWriter(draft, max_shard_bytes)
        for weight in weights:
            name = file_name(config.model_type, plain_name(weight.name))
            if name in written or (name == output_name and config.tie_word_embeddings):
                continue
            written.add(name)
            shape = weight.shape
            if name in (input_name, output_name):
                shape = (min(shape[0], vocab_size), *shape[1:])
            make = partial(_exported, weight, name, shape[0], DTYPES[dtype])
            writer.add(Weight(name, shape, DTYPES[dtype], make))
        if input_name not in written:
            raise UserError("is not among the weights to export", value=input_name)
        writer.close()
        _write_config(config, vocab_size, dtype, draft)
        loader = _tokenizer_loader(config.model_type, draft)
        (draft / "README.md").write_text(render_card(card, dtype, loader), encoding="utf-8")
        if card.state is not None:
            (draft / EXPORTED).write_text(json.dumps(card.state), encoding="utf-8")


def _exported(weight: Weight, name: str, rows: int, dtype: torch.dtype) -> Tensor:
    """Make the first `rows` of a weight in `dtype`; a finite value that becomes infinite is an error."""
    made = weight.make()[:rows]
    cast = made.to(dtype)
    if dtype is torch.float16 and not torch.isfinite(cast).all() and torch.isfinite(made).all():
        largest = made.abs().max().item()
        raise UserError(
            f"reaches {largest:.3g}, beyond the range of fp16", value=name, fix="export in bf16 or fp32"
        )
    return cast


def _write_config(config: PretrainedConfig, vocab_size: int, dtype: str, draft: Path) -> None:
    """Write config.json and generation_config.json for use of the model, not for its training."""
    exported = copy.deepcopy(config)
    exported.vocab_size = vocab_size
    exported.dtype = DTYPES[dtype]
    exported.use_cache = True
    exported.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    exported.save_pretrained(draft)
    GenerationConfig.from_model_config(exported).save_pretrained(draft)


def _tokenizer_loader(model_type: str, draft: Path) -> str:
    """Return the transformers class that loads the tokenizer unchanged.

    For Qwen2, `AutoTokenizer` uses Qwen2's own rules even if tokenizer_config.json names another class.
    """
    path = draft / "tokenizer_config.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class", "") if path.exists() else ""
    if model_type == "qwen2" and named.startswith(("PreTrainedTokenizer", "Llama")):
        return "PreTrainedTokenizerFast"
    return "AutoTokenizer"


def export_checkpoint(
    checkpoint: Checkpoint, out: Path, dtype: Literal["fp32", "bf16", "fp16"], max_shard_bytes: int
) -> None:
    """Export a checkpoint in the Hugging Face format, one parameter at a time.

    Raises:
        UserError: `out` is not empty, or the recipe's tokenizer is missing.
    """
    manifest = checkpoint.manifest
    recipe = parse_recipe(manifest.recipe, file=checkpoint.path / MARKER)
    vocab_size = files.open_tokenizer(recipe.model.tokenizer).size
    config = AutoConfig.for_model(**read_config(checkpoint.path))
    reader = rank_files.Reader(checkpoint.files)

    export_model(
        reader.weights(),
        config,
        recipe.model.tokenizer,
        out,
        vocab_size=vocab_size,
        dtype=dtype,
        card=card_of(checkpoint),
        max_shard_bytes=max_shard_bytes,
    )
