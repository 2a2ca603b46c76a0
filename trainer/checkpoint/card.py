"""The model card of an export: origin, phases, evaluation and lineage, as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import Checkpoint
from trainer.machine.log_lines import logger
from trainer.metrics.jsonl import Attempt, MeasuredOn, history_of, read_attempts
from trainer.metrics.names import stream_of
from trainer.recipe.load import parse_recipe
from trainer.scheduler.state import RunState
from trainer.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class Card:
    """The content of a model card."""

    name: str
    base: str | None = None
    """The model that training continued; None for random weights."""
    tokens: int = 0
    """Tokens trained in the whole run."""
    phases: Sequence[Mapping[str, Any]] = ()
    """Per phase a mapping with the same keys: name, tokens, mixture, schedule, …."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Metric → value, forgetting among them."""
    measured_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the scores on each validation set are measured on."""
    lineage: Sequence[Mapping[str, Any]] = ()
    """Records of lineage.jsonl, with the fields that the card shows."""
    merged: Sequence[Mapping[str, Any]] = ()
    """Per model that it is the average of, its name and weight; empty for a model that was trained."""
    merged_how: str = ""
    """Where the weights of the average come from."""
    state: Mapping[str, Any] | None = None
    """The `scheduler.state.RunState` of the checkpoint, for a run that has this model as its base."""


def render_card(card: Card, dtype: str, tokenizer_loader: str = "AutoTokenizer") -> str:
    """Render the model card, in Markdown with the metadata block of the hub."""
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [rewarm]"]
    if card.base and _is_hub_id(card.base):
        head.append(f"base_model: {card.base}")
    parts = [
        "\n".join([*head, "---"]),
        f"# {card.name}",
        f"This model {_origin(card)}; weights in {dtype}.",
    ]
    for title, rows in (("Merged", card.merged), ("Phases", card.phases), ("Lineage", card.lineage)):
        if rows:
            parts += [f"## {title}", _table(rows)]
    if card.evaluation:
        measured = [{"metric": name, "value": f"{value:.4f}"} for name, value in card.evaluation.items()]
        parts += ["## Evaluation", _table(measured)]
        parts.append("Forgetting is upstream bits per byte now minus the base model's.")
    if card.measured_on:
        parts += [
            "Scores are comparable only with scores that are measured on the same:",
            _table([{"set": name, **facts} for name, facts in card.measured_on.items()]),
        ]
    parts += ["## Use", _USE.replace("AutoTokenizer", tokenizer_loader)]
    return "\n\n".join(parts) + "\n"


def _origin(card: Card) -> str:
    if card.merged:
        how = f", {card.merged_how}" if card.merged_how else ""
        return f"is the linear average of {len(card.merged)} models, made with `rewarm merge`{how}"
    origin = f"continues `{card.base}`" if card.base else "starts from random weights"
    return f"{origin}, trained on {card.tokens:,} tokens with rewarm"


def _is_hub_id(base: str) -> bool:
    """Tell whether a base is `owner/name` on the hub rather than a local directory."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) is not None and not Path(base).is_dir()


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
```"""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Render a Markdown table with a column for each key, in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [
        [str(row.get(column, "")).replace("|", "\\|").replace("\n", " ") for column in columns]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_TOLD = ("kind", "step", "tokens", "phase_name", "reason")
"""Fields of a lineage record that the card shows."""


def card_of(checkpoint: Checkpoint) -> Card:
    """Make the model card of a checkpoint, from its manifest and its run directory."""
    manifest = checkpoint.manifest
    recipe = parse_recipe(manifest.recipe)
    state = RunState.from_json(manifest.state)
    phases = [
        {
            "phase": record.name,
            "tokens": f"{record.tokens:,}",
            "trained": record.train if isinstance(record.train, str) else ", ".join(record.train),
            "mixture": ", ".join(
                f"{name} {weight}" for one in record.data.segments for name, weight in one.weights.items()
            ),
            "schedule": f"{record.schedule['kind']}, max_lr {record.schedule['max_lr']:g}",
        }
        for record in state.phases
    ]
    run = RunDirectory(checkpoint.path.parent.parent)
    attempts = read_attempts(run.path) if run.metrics.exists() else []
    evaluation, measured_on = _evaluation(attempts, manifest.step)
    return Card(
        name=recipe.name,
        base=recipe.model.base,
        tokens=state.trained_tokens,
        phases=phases,
        evaluation=evaluation,
        measured_on=measured_on,
        lineage=[{name: record.get(name) for name in _TOLD} for record in run.read_lineage(logger.warning)],
        state=manifest.state,
    )


def _evaluation(attempts: Sequence[Attempt], step: int) -> tuple[dict[str, float], MeasuredOn]:
    """Return the last losses measured up to `step`, and what those on each validation set are measured on."""
    found: dict[str, float] = {}
    on: MeasuredOn = {}
    starts = {attempt.number: attempt.measured_on for attempt in attempts}
    for record in history_of(attempts):
        scores = {name: value for name, value in record.items() if stream_of(name) and math.isfinite(value)}
        if record["step"] > step or not scores:
            continue
        found |= scores
        for stream in map(stream_of, scores):
            if facts := starts[record["attempt"]].get(str(stream)):
                on[str(stream)] = facts
    return found, on
