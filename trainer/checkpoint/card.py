"""The model card: what a reader of an exported model must know."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import Checkpoint
from trainer.metrics.jsonl import read_metrics
from trainer.recipe.load import parse_recipe
from trainer.scheduler.state import RunState
from trainer.storage.run_directory import METRICS


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


def render_card(card: Card, dtype: str, tokenizer_loader: str = "AutoTokenizer") -> str:
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


def card_of(checkpoint: Checkpoint) -> Card:
    """What the model card tells, from the checkpoint and the run directory around it."""
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


def _evaluation(run: Path, step: int) -> dict[str, float]:
    """The last losses measured up to `step`."""
    found: dict[str, float] = {}
    for record in read_metrics(run) if (run / METRICS).exists() else ():
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
