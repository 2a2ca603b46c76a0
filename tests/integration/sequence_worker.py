"""What each rank of test_sequence.py does: a step of every case, on whole rows or on parts of them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch

from tests.helpers.model_tiny import INIT, SHAPE, build, recipe, tokens
from trainer.engine.engine import Engine, sharded_loading
from trainer.engine.layout import Layout
from trainer.machine import collectives
from trainer.machine.ranks import current_world
from trainer.machine.sequence import sequence_group
from trainer.mixer.batch import MicroBatch
from trainer.model.sequence import SequencePart
from trainer.model.trainable import parameter_groups

PIECES, ROWS = 90, 4
FULL = "model.activation_checkpointing=full"
EAGER = "model.attention=eager"

CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "llama": (INIT["llama"], (), False),  # two key and value heads: at 4 ranks each is on two of them
    "documents": (INIT["llama"], (FULL,), True),
    "tied": ({**SHAPE, "num_key_value_heads": 1, "tie_word_embeddings": "true"}, (EAGER,), True),
    "window": ({**INIT["mistral"], "sliding_window": 5}, (), True),
    "layers": (
        {**INIT["qwen2"], "use_sliding_window": "true", "sliding_window": 5, "max_window_layers": 1},
        (),
        False,
    ),
    "gpt_neox": (INIT["gpt_neox"], (), True),
    "compiled": (INIT["llama"], ("model.compile=true", "model.activation_checkpointing={every_n: 2}"), True),
}
"""Model, overrides of the recipe, and whether documents are masked."""

ASKED = [
    *((case, 2, parts) for case in CASES if case != "compiled" for parts in (2, 4)),
    *(("documents", stage, 2) for stage in (0, 1, 3)),
    ("documents", 3, 4),
    ("compiled", 3, 2),
]
"""Cases, ZeRO stages, and the ranks that share a sample; all of four ranks."""


OPTIMIZER = {"eps": 1.0, "weight_decay": 0.0, "grad_clip": 0.0}
"""AdamW's first step is then lr * gradient / (|gradient| + 1): it shows each gradient."""

NARROW = 13
"""Tokens of the rows that are scored: neither 2 nor 4 parts divide them."""


def batch(documents: bool) -> MicroBatch:
    """Rows of two sources, with masked targets; documents end in the middle of parts and between them."""
    ids = tokens(ROWS, 17, pieces=PIECES, seed=3).numpy()
    targets = ids[:, 1:].copy()
    targets[0, 3:9] = -100
    places = [
        [*range(9), *range(7)],
        [*range(8), *range(8)],
        [*range(16)],
        [*range(3), *range(2), *range(11)],
    ]
    return MicroBatch(
        ids[:, :-1].copy(), targets, np.array([0, 1, 1, 0]), np.array(places) if documents else None
    )


def cut(given: MicroBatch, rows: slice = slice(None), width: int | None = NARROW) -> MicroBatch:
    """Some rows of a batch, and their first tokens."""
    at = (rows, slice(width))
    positions = None if given.positions is None else given.positions[at]
    return MicroBatch(given.input_ids[at], given.targets[at], given.source[rows], positions)


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
        return parameter.detach().clone()


def run(case: str, stage: int, parts: int) -> dict[str, Any]:
    """The weights after a step, losses by source, the gradient norm, and the scores of shorter rows."""
    init, overrides, documents = CASES[case]
    made = recipe(*overrides, **init)
    layout = Layout(collectives.world_size(), 1, 1, parts)
    group, part = layout.place(collectives.rank())
    each = ROWS // layout.data_parallel_size
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": each,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": 10_000,
            "allgather_bucket_size": 10_000,
        },
    }
    wrap = partial(SequencePart, group=sequence_group(parts))
    with sharded_loading(config) as initialize:
        causal = build(made, PIECES, initialize=initialize, wrap=wrap)
    groups = parameter_groups(causal, made.phases[0], 0.0)
    optimizer = made.optimizer.model_copy(update=OPTIMIZER)
    engine = Engine(causal, groups, config, optimizer, part=(part, parts))
    own = range(group * each, (group + 1) * each)
    micro = [cut(batch(documents), slice(at, at + 1), None) for at in own]
    scores = torch.stack([torch.stack(engine.score(cut(one))) for one in micro]).sum(dim=(0, 2))
    found = {"scores": collectives.all_reduce_sum(scores)}
    result = engine.train_step(micro, 1.0, sources=2, seed=0, stop=False)
    found |= {"nats": result.source_nats, "targets": result.source_targets, "norm": result.grad_norm}
    found["after"] = {name: whole(value) for name, value in causal.named_parameters()}
    engine.close()
    return found


def main(out: Path) -> None:
    """Write what every case gave, by case, stage and parts."""
    world = current_world()
    collectives.join_ranks(world)
    found = {asked: run(*asked) for asked in ASKED}
    if world.rank == 0:
        torch.save(found, out)
    collectives.leave_ranks()


if __name__ == "__main__":
    main(Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))))
