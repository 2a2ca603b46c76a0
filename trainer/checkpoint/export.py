"""Export trained weights to a directory that AutoModelForCausalLM and AutoTokenizer load anywhere."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tokenization.disk import refuse_existing, whole_directory
from tokenization.errors import UserError
from tokenization.shards.store import open_tokens
from tokenization.tokenizer import files
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.fingerprint import same
from trainer.checkpoint import rank_files
from trainer.checkpoint.card import Card, card_of, render_card
from trainer.checkpoint.manifest import MARKER, Checkpoint
from trainer.model.architecture import EMBEDDINGS, file_name, read_config
from trainer.model.loss import plain_name
from trainer.model.rope import with_both_forms
from trainer.model.tokenizer import write_tokenizer
from trainer.model.tokens import TOKENIZER, own_tokenizer, with_special
from trainer.model.trained import BASE_ROWS
from trainer.recipe.load import parse_recipe
from trainer.recipe.schema import Recipe
from trainer.storage.hub import read_generation
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
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write `weights` (made one at a time, with the names of `CausalLM` or Hugging Face) and their config.

    Embedding rows beyond the tokenizer's `vocab_size` pieces are padding and are not exported, so that
    they cannot be sampled. The tokenizer is proved to give the ids of the training. `generation` is the
    base's generation_config.json. Returns a line for each thing that differs from the base.

    Raises:
        UserError: `out` is not empty (unless `overwrite`), the tokenizer is missing or cannot be written so
            that transformers gives its ids, `weights` have no input embedding, or a weight does not
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
            make = partial(_exported, weight, name, shape[0], DTYPES[dtype])
            writer.add(Weight(name, shape, DTYPES[dtype], make))
        if input_name not in written:
            raise UserError("is not among the weights to export", value=input_name)
        writer.close()
        (draft / "README.md").write_text(render_card(card, dtype, proved.loader), encoding="utf-8")
        if card.state is not None:
            (draft / EXPORTED).write_text(json.dumps(card.state), encoding="utf-8")
    return [*lines, *proved.lines]


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


def _write_config(
    config: PretrainedConfig,
    vocab_size: int,
    dtype: str,
    draft: Path,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any] | None,
) -> list[str]:
    """Write config.json and generation_config.json for use of the model, not for its training."""
    base_rows = getattr(config, BASE_ROWS, None)
    fields, lines = with_special(config.to_dict(), tokenizer, "config.json", base_rows)
    fields |= {"vocab_size": vocab_size, "use_cache": True, TOKENIZER: tokenizer.fingerprint}
    told = type(config).from_dict(fields)
    told.dtype = DTYPES[dtype]
    told.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    told.save_pretrained(draft)
    written = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(with_both_forms(written), indent=2, sort_keys=True, ensure_ascii=False)
    (draft / "config.json").write_text(f"{text}\n", encoding="utf-8")
    if generation is None:
        GenerationConfig.from_model_config(told).save_pretrained(draft)
        return lines
    settings, more = with_special(generation, tokenizer, "generation_config.json", base_rows)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (draft / "generation_config.json").write_text(f"{text}\n", encoding="utf-8")
    return [*lines, *more]


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    dtype: Literal["fp32", "bf16", "fp16"],
    max_shard_bytes: int,
    overwrite: bool = False,
    average: bool = False,
) -> list[str]:
    """Export a checkpoint in the Hugging Face format, one parameter at a time; return notes about it.

    With `average` the weights are the averaged ones; those that were not trained are as they are.

    Raises:
        UserError: there is no average, `out` is not empty (unless `overwrite`), or the recipe's tokenizer is
            missing or is not the one that the run was trained with.
    """
    refuse_existing(out, overwrite=overwrite)
    manifest = checkpoint.manifest
    recipe = parse_recipe(manifest.recipe, file=checkpoint.path / MARKER)
    tokenizer = files.open_tokenizer(recipe.model.tokenizer)
    fields = read_config(checkpoint.path)
    lines = hold_run_tokenizer(checkpoint, recipe, fields, tokenizer)
    config = AutoConfig.for_model(**fields)
    reader = rank_files.Reader(checkpoint.files)
    if average and not reader.has_average:
        fix = "export without --average; model.average in the recipe keeps one from the next step on"
        raise UserError("holds no averaged weights", file=checkpoint.path, fix=fix)
    lines += export_model(
        reader.weights(average=average),
        config,
        recipe.model.tokenizer,
        out,
        vocab_size=tokenizer.size,
        dtype=dtype,
        card=card_of(checkpoint),
        max_shard_bytes=max_shard_bytes,
        generation=generation_of_checkpoint(checkpoint, recipe),
        overwrite=overwrite,
    )
    return lines


def generation_of_checkpoint(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any] | None:
    """Return a checkpoint's settings of generation, or those of its base where that is a directory."""
    generation = read_generation(checkpoint.path)
    if generation is None and recipe.model.base is not None and Path(recipe.model.base).is_dir():
        return read_generation(recipe.model.base)
    return generation


def hold_run_tokenizer(
    checkpoint: Checkpoint, recipe: Recipe, config: dict[str, Any], tokenizer: files.Tokenizer
) -> list[str]:
    """Hold the tokenizer at the recipe's path against the one that the run was trained with.

    An older checkpoint does not tell it; the shards that it was trained on do, where they still lie there.

    Raises:
        UserError: it is another one now.
    """
    trained = [(str(checkpoint.path), found)] if isinstance(found := config.get(TOKENIZER), str) else []
    for source in () if trained else recipe.sources.values():
        with contextlib.suppress(UserError):
            trained.append((source.path, open_tokens(source.path).tokenizer))
    for where, fingerprint in trained:
        if not same(fingerprint, tokenizer.fingerprint):
            what = f"is {tokenizer.fingerprint} now, and the run was trained with {fingerprint} (see {where})"
            fix = "put that tokenizer back"
            raise UserError(what, field="model.tokenizer", value=recipe.model.tokenizer, fix=fix)
    if trained:
        return []
    unknown = "neither the checkpoint nor a shard tells the tokenizer of the training; it is not compared"
    return [f"model.tokenizer: {recipe.model.tokenizer!r}: {unknown}"]
