"""Trained weights → a directory that AutoModelForCausalLM and AutoTokenizer load anywhere."""

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
    """Writes `weights` (made one at a time, under `CausalLM`'s names or Hugging Face's) and their config.

    Embedding rows beyond the tokenizer's `vocab_size` pieces are padding and are left out, so that no one
    can sample them. The tokenizer's files are copied byte for byte.

    Raises:
        UserError: `out` is not empty, the tokenizer is missing, there is no input embedding in `weights`,
            or a weight does not fit into `dtype`.
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
            writer.add(Weight(name, shape, DTYPES[dtype], partial(_made, weight, name, shape, DTYPES[dtype])))
        if input_name not in written:
            raise UserError("is not among the weights to export", value=input_name)
        writer.close()
        _write_config(config, vocab_size, dtype, draft)
        loader = _tokenizer_loader(config.model_type, draft)
        (draft / "README.md").write_text(render_card(card, dtype, loader), encoding="utf-8")
        if card.state is not None:
            (draft / EXPORTED).write_text(json.dumps(card.state), encoding="utf-8")


def _made(weight: Weight, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    made = weight.make()
    return _cast(name, made if made.shape == shape else made[: shape[0]], dtype)


def _cast(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`, refused if that makes a finite value infinite."""
    cast = weight.to(dtype)
    if dtype is torch.float16 and not torch.isfinite(cast).all() and torch.isfinite(weight).all():
        largest = weight.abs().max().item()
        raise UserError(f"reaches {largest:.3g}, beyond fp16", value=name, fix="export in bf16 or fp32")
    return cast


def _write_config(config: PretrainedConfig, vocab_size: int, dtype: str, draft: Path) -> None:
    """config.json and generation_config.json for those who use the model, not for those who train it."""
    told = copy.deepcopy(config)
    told.vocab_size = vocab_size
    told.dtype = DTYPES[dtype]
    told.use_cache = True
    told.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    told.save_pretrained(draft)
    GenerationConfig.from_model_config(told).save_pretrained(draft)


def _tokenizer_loader(model_type: str, draft: Path) -> str:
    """The transformers class that loads the tokenizer as it is.

    For Qwen2 `AutoTokenizer` takes Qwen2's own rules, whatever tokenizer_config.json names.
    """
    path = draft / "tokenizer_config.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class", "") if path.exists() else ""
    if model_type == "qwen2" and named.startswith(("PreTrainedTokenizer", "Llama")):
        return "PreTrainedTokenizerFast"
    return "AutoTokenizer"


def export_checkpoint(
    checkpoint: Checkpoint, out: Path, dtype: Literal["fp32", "bf16", "fp16"], max_shard_bytes: int
) -> None:
    """Writes the Hugging Face form of a checkpoint, one parameter at a time.

    Raises:
        UserError: `out` is not empty, or the recipe's tokenizer is gone.
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
