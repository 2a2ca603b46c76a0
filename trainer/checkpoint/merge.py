"""Average models: exports, checkpoints, and directories or hub ids of others, one tensor at a time.

The average of a base and of what it was continued to forgets less than the latter (BaM, arXiv 2407.08699);
that of checkpoints at a constant learning rate stands for a decay of it (PMA, arXiv 2505.12082; WSM, arXiv
2507.17634).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig

from tokenization.disk import refuse_existing
from tokenization.errors import UserError
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.fingerprint import same
from trainer.checkpoint import rank_files
from trainer.checkpoint.card import Card
from trainer.checkpoint.export import export_model, generation_of_checkpoint, hold_run_tokenizer
from trainer.checkpoint.history import find_checkpoint
from trainer.checkpoint.manifest import MARKER, Checkpoint
from trainer.model.architecture import BUFFERS, EMBEDDINGS, check_type, file_name, read_config
from trainer.model.loss import plain_name
from trainer.model.tokens import fingerprint_of
from trainer.recipe.load import parse_recipe
from trainer.storage.hub import local_directory, read_generation
from trainer.storage.run_directory import EXPORTED, RunDirectory
from trainer.storage.safetensors import DTYPES, Weight, WeightsReader

COMPUTING = (
    *("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "layer_norm_eps", "rope_parameters"),
    *("tie_word_embeddings", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    *("use_parallel_residual", "attention_bias", "mlp_bias"),
)
"""Fields of config.json that change what a model computes from the same weights, or how many it has."""

ELEMENTS = 1 << 24
"""Elements that are converted to fp32 at a time."""


@dataclass(frozen=True)
class MergeInput:
    """A model to average, opened: its weights are read when they are needed."""

    name: str
    config: dict[str, Any]
    tokenizer: Tokenizer
    weights: dict[str, Weight]
    """By their names in files; without buffers and without the second name of a tied matrix."""
    generation: Mapping[str, Any] | None
    state: Mapping[str, Any] | None
    """The `scheduler.state.RunState` of one of our models."""
    lines: Sequence[str] = ()

    @property
    def tokens(self) -> int:
        """Tokens that it was trained on with rewarm, as far as it tells."""
        return int((self.state or {}).get("trained_tokens", 0))

    @property
    def computes(self) -> dict[str, Any]:
        """Its `COMPUTING` fields, with every default filled in."""
        fields = AutoConfig.for_model(**self.config).to_dict()
        return {name: fields.get(name) for name in COMPUTING}


def merge_models(
    models: Sequence[str | Checkpoint],
    weights: Sequence[float],
    out: str | Path,
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16",
    how: str = "",
) -> list[str]:
    """Write the average of `models`, Σ weight · model, to the new directory `out`; return notes.

    A model is an export, a Hugging Face directory or hub id, a checkpoint, or a run for its newest one. The
    sums are in fp32, and one tensor at a time is in memory. Config, tokenizer and settings of generation are
    those of the first model. Rows of the embeddings beyond the tokenizer's pieces are padding and are left
    out. `how` tells the card where the weights come from.

    Raises:
        UserError: a model is missing or damaged, `out` is not empty, the models differ in shape, in what they
            compute or in their tokenizers, or the weights are not those of an average.
        InfrastructureError: the disk is full or cannot be read or written.
    """
    refuse_existing(out)
    hold_weights(weights, len(models))
    with ExitStack() as stack:
        opened = [open_model(model, stack) for model in models]
        for other in opened[1:]:
            hold_alike(opened[0], other)
        first, newest = opened[0], max(opened, key=lambda one: one.tokens)
        table = [
            {"model": one.name, "weight": f"{weight:.6g}", "tokens with rewarm": f"{one.tokens:,}"}
            for one, weight in zip(opened, weights, strict=True)
        ]
        card = Card(Path(out).name, tokens=newest.tokens, merged=table, merged_how=how, state=newest.state)
        lines = export_model(
            averaged(opened, weights),
            AutoConfig.for_model(**first.config),
            first.tokenizer.path.parent if first.tokenizer.directory else first.tokenizer.path,
            out,
            vocab_size=first.tokenizer.size,
            dtype=dtype,
            card=card,
            generation=first.generation,
        )
        return [*dict.fromkeys(line for one in opened for line in one.lines), *lines]


def hold_weights(weights: Sequence[float], models: int) -> None:
    """Hold weights against the number of models.

    Raises:
        UserError: another number of them, one below 0, or a sum that is not 1.
    """
    shown = ",".join(f"{weight:g}" for weight in weights)
    if models < 2:
        raise UserError("needs two models or more", field="MODEL", fix="name them one after another")
    if len(weights) != models:
        what = f"are {len(weights)} weights for {models} models"
        raise UserError(what, field="--weights", value=shown, fix="give each model its own")
    if any(not 0 <= weight <= 1 for weight in weights):
        what = "are not the weights of an average: each is from 0 to 1"
        raise UserError(what, field="--weights", value=shown)
    if not math.isclose(total := math.fsum(weights), 1.0, abs_tol=1e-6):
        fix = "give fractions that do, such as 1/3,1/3,1/3"
        raise UserError(f"sum to {total:.6g} and not to 1", field="--weights", value=shown, fix=fix)


def open_model(model: str | Checkpoint, stack: ExitStack) -> MergeInput:
    """Open a model; its files stay open until `stack` ends.

    Raises:
        UserError: it is missing or damaged, of a model_type that is not supported, or quantized.
    """
    if isinstance(model, Checkpoint):
        return _open_checkpoint(model)
    path = Path(model)
    if (path / MARKER).exists() or RunDirectory(path).checkpoints.is_dir():
        return _open_checkpoint(find_checkpoint(path))
    directory = local_directory(model, field="MODEL")
    config = read_config(directory, field="MODEL")
    check_type(config.get("model_type"), field="MODEL", file=directory)
    tokenizer = open_tokenizer(directory)
    recorded = fingerprint_of(directory, config)
    if recorded is not None and not same(recorded, tokenizer.fingerprint):
        what = f"has rows of the tokenizer {recorded}, and the one beside them is {tokenizer.fingerprint}"
        raise UserError(what, file=directory, fix="put the tokenizer back that the model was made with")
    reader = stack.enter_context(WeightsReader(directory))
    found = (
        Weight(name, tuple(reader.shape(name)), reader.dtype(name), partial(reader.__getitem__, name))
        for name in reader.names
    )
    state = directory / EXPORTED
    return MergeInput(
        str(model),
        config,
        tokenizer,
        _by_name(found, config, directory),
        read_generation(directory),
        json.loads(state.read_text(encoding="utf-8")) if state.is_file() else None,
    )


def _open_checkpoint(checkpoint: Checkpoint) -> MergeInput:
    recipe = parse_recipe(checkpoint.manifest.recipe, file=checkpoint.path / MARKER)
    config = read_config(checkpoint.path)
    tokenizer = open_tokenizer(recipe.model.tokenizer)
    lines = hold_run_tokenizer(checkpoint, recipe, config, tokenizer)
    return MergeInput(
        str(checkpoint.path),
        config,
        tokenizer,
        _by_name(rank_files.Reader(checkpoint.files).weights(), config, checkpoint.path),
        generation_of_checkpoint(checkpoint, recipe),
        checkpoint.manifest.state,
        lines,
    )


def _by_name(weights: Iterable[Weight], config: Mapping[str, Any], where: Path) -> dict[str, Weight]:
    """Return weights by their names in files, without what is not a weight of its own."""
    found = {file_name(config["model_type"], plain_name(weight.name)): weight for weight in weights}
    tied = {EMBEDDINGS[config["model_type"]][1]} if config.get("tie_word_embeddings") else set()
    kept = {name: one for name, one in found.items() if not BUFFERS.search(name) and name not in tied}
    for name, one in kept.items():
        if not one.dtype.is_floating_point:
            what = f"is stored as {one.dtype}, of which no average can be made"
            raise UserError(what, file=where, field=name, fix="give the model that it was quantized from")
    return kept


def hold_alike(first: MergeInput, other: MergeInput) -> None:
    """Hold a model against the first one.

    Raises:
        UserError: their tokenizers, shapes or computations differ.
    """
    if not same(first.tokenizer.fingerprint, other.tokenizer.fingerprint):
        sizes = f"{other.tokenizer.size:,} pieces, and {first.name} is of one with {first.tokenizer.size:,}"
        fix = "average models of one tokenizer"
        if first.tokenizer.size != other.tokenizer.size:
            fix += (
                "; for the line from a base to a model with an extended vocabulary, give the base that "
                "`rewarm model extend` wrote, with which the run began"
            )
        raise UserError(f"is of another tokenizer, with {sizes}", field="MODEL", value=other.name, fix=fix)
    own, its = first.computes, other.computes
    if differing := [name for name in COMPUTING if own[name] != its[name]]:
        shown = ", ".join(f"{name} {its[name]!r} and not {own[name]!r}" for name in differing)
        what = f"differs from {first.name} in its config.json: {shown}"
        raise UserError(what, field="MODEL", value=other.name, fix="average models of one architecture")
    if unlike := sorted(set(first.weights) ^ set(other.weights)):
        holder, lacking = (first, other) if unlike[0] in first.weights else (other, first)
        what = f"lacks {len(unlike)} weight(s) that {holder.name} has, among them {unlike[0]}"
        raise UserError(what, field="MODEL", value=lacking.name)
    for name, weight in first.weights.items():
        shapes = [_shape(one, name) for one in (first, other)]
        if shapes[0] != shapes[1]:
            what = f"has {name} of shape {shapes[1]}, and {first.name} of {shapes[0]}"
            raise UserError(what, field="MODEL", value=other.name)
        if name in EMBEDDINGS[first.config["model_type"]] and weight.shape[0] < first.tokenizer.size:
            what = f"has {weight.shape[0]} rows for the {first.tokenizer.size} pieces of its tokenizer"
            raise UserError(what, field="MODEL", value=first.name, fix="copy the model again")


def _shape(model: MergeInput, name: str) -> tuple[int, ...]:
    """The shape of a weight, without the padding rows of an embedding."""
    shape = model.weights[name].shape
    if name in EMBEDDINGS[model.config["model_type"]]:
        return (min(shape[0], model.tokenizer.size), *shape[1:])
    return shape


def averaged(models: Sequence[MergeInput], weights: Sequence[float]) -> Iterator[Weight]:
    """Yield the average of each weight in fp32, which is made when it is needed."""
    used = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight]
    for name in models[0].weights:
        shape = _shape(models[0], name)
        yield Weight(name, shape, DTYPES["fp32"], partial(_average, used, name, shape))


def _average(used: Sequence[tuple[MergeInput, float]], name: str, shape: tuple[int, ...]) -> Tensor:
    """Return Σ weight · tensor in fp32; a model of weight 0 is not read."""
    total = torch.zeros(math.prod(shape), dtype=torch.float32)
    for model, weight in used:
        flat = model.weights[name].make().reshape(-1)[: total.numel()]
        for start in range(0, total.numel(), ELEMENTS):
            part = flat[start : start + ELEMENTS].to(torch.float32)
            total[start : start + ELEMENTS].add_(part, alpha=weight)
    return total.view(shape)
