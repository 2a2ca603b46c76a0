"""Takes a checkpoint out of a run: finds it, and exports it for others."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from tokenization import vocabulary
from tokenization.directories import refuse_existing
from tokenization.fingerprint import same
from tokenization.shards import open_tokens
from trainer.checkpoint import commit, portable
from trainer.checkpoint.export import Card, export
from trainer.errors import InfrastructureError, UserError
from trainer.metrics.records import FILE, read
from trainer.model.architecture import read_config
from trainer.model.directory import read_generation
from trainer.model.tokens import TOKENIZER
from trainer.recipe import Recipe, parse
from trainer.scheduler.state import RunState


def find(path: Path) -> commit.Checkpoint:
    """The checkpoint at `path`, or the newest good one of the run directory at `path`, verified.

    Raises:
        UserError: there is none.
        InfrastructureError: the one that is meant is damaged.
    """
    if (path / commit.MARKER).exists():
        checkpoint = commit.read(path)
    else:
        good, broken = commit.scan(path / "checkpoints")
        if not good:
            found = f" ({'; '.join(broken)})" if broken else ""
            raise UserError(
                f"holds no committed checkpoint{found}",
                file=path,
                mend="give a run directory or a checkpoint",
            )
        checkpoint = good[-1]
    damaged = commit.verify(checkpoint)
    if damaged:
        raise InfrastructureError("; ".join(damaged))
    return checkpoint


def export_checkpoint(
    checkpoint: commit.Checkpoint,
    out: Path,
    dtype: Literal["fp32", "bf16", "fp16"],
    max_shard_bytes: int,
    overwrite: bool = False,
) -> list[str]:
    """Writes the Hugging Face form of a checkpoint, one parameter at a time; lines to be told of it.

    Raises:
        UserError: `out` is not empty (unless `overwrite`), or the recipe's tokenizer is gone or is not the
            one that the run was trained with.
    """
    refuse_existing(out, overwrite=overwrite)
    manifest = checkpoint.manifest
    recipe = parse(manifest.recipe, file=checkpoint.path / commit.MARKER)
    tokenizer = vocabulary.open_tokenizer(recipe.model.tokenizer)
    fields = read_config(checkpoint.path)
    lines = _hold_tokenizer(checkpoint, recipe, fields, tokenizer)
    config = AutoConfig.for_model(**fields)
    reader = portable.Reader(checkpoint.files)
    generation = read_generation(checkpoint.path)
    if generation is None and recipe.model.base is not None and Path(recipe.model.base).is_dir():
        generation = read_generation(recipe.model.base)
    lines += export(
        reader.weights(),
        config,
        recipe.model.tokenizer,
        out,
        vocab_size=tokenizer.size,
        dtype=dtype,
        card=_card(checkpoint),
        max_shard_bytes=max_shard_bytes,
        generation=generation,
        overwrite=overwrite,
    )
    return lines


def _hold_tokenizer(
    checkpoint: commit.Checkpoint, recipe: Recipe, config: dict[str, Any], tokenizer: vocabulary.Tokenizer
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
            mend = "put that tokenizer back"
            raise UserError(what, field="model.tokenizer", value=recipe.model.tokenizer, mend=mend)
    if trained:
        return []
    unknown = "neither the checkpoint nor a shard tells the tokenizer of the training; it is not compared"
    return [f"model.tokenizer: {recipe.model.tokenizer!r}: {unknown}"]


def _card(checkpoint: commit.Checkpoint) -> Card:
    """What the model card tells, from the checkpoint and the run directory around it."""
    manifest = checkpoint.manifest
    recipe = parse(manifest.recipe)
    state = RunState.from_json(manifest.state)
    phases = [
        {
            "phase": record.name,
            "tokens": f"{record.tokens:,}",
            "trained": record.train if isinstance(record.train, str) else ", ".join(record.train),
            "mixture": ", ".join(f"{name} {weight}" for name, weight in _weights(record.data)),
            "schedule": f"{record.schedule['kind']}, max_lr {record.schedule['max_lr']:g}",
        }
        for record in state.phases
    ]
    run = checkpoint.path.parent.parent
    return Card(
        name=recipe.name,
        base=recipe.model.base,
        tokens=state.trained_tokens,
        phases=phases,
        evaluation=_evaluation(run, manifest.step),
        lineage=_lineage(run / "lineage.jsonl"),
        state=manifest.state,
    )


def _weights(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for field, value in data.items():
        if field.startswith("mixture.") and not field.endswith(".from_sample"):
            yield field.split(".", 2)[2], value


def _evaluation(run: Path, step: int) -> dict[str, float]:
    """The last losses measured up to `step`."""
    found: dict[str, float] = {}
    for record in read(run) if (run / FILE).exists() else ():
        if record["step"] <= step:
            found |= {
                name: value
                for name, value in record.items()
                if name.startswith("eval/") and math.isfinite(value)
            }
    return found


def _lineage(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []  # whole ones
    kept = ("kind", "step", "tokens", "phase_name", "reason")
    return [{name: json.loads(line).get(name) for name in kept} for line in lines]
