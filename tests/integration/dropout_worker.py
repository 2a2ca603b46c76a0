"""What each rank of test_dropout.py does: two steps on the same rows, with dropout in the attention."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.model_tiny import INIT, build, recipe, tokens
from trainer.engine.ds_config import complete
from trainer.engine.engine import Engine
from trainer.engine.layout import Layout
from trainer.machine import collectives
from trainer.machine.ranks import current_world
from trainer.mixer.batch import MicroBatch
from trainer.mixer.permutation import key_of
from trainer.model.architecture import resolve_config
from trainer.model.trainable import parameter_groups

PIECES, PARTS = 90, 2


def main(out: Path) -> None:
    """Writes the loss of every micro batch, by step, rank and micro batch; steps 0 and 1, and 1 again."""
    world = current_world()
    collectives.join_ranks(world)
    made = recipe("global_batch_size=4", **INIT["llama"], attention_dropout=0.5)
    config = resolve_config(made, PIECES)
    causal = build(made, PIECES)
    groups = parameter_groups(causal, made.phases[0], made.optimizer.weight_decay)
    layout = Layout(world.world_size, 1, PARTS)
    engine = Engine(
        causal, groups, complete({"zero_optimization": {"stage": 0}}, made, layout, config), made.optimizer
    )
    losses: list[float] = []
    causal.register_forward_hook(lambda _model, _given, found: losses.append(float(found[0].detach())))
    ids = tokens(1, 17, pieces=PIECES).numpy()
    row = MicroBatch(ids[:, :-1].copy(), ids[:, 1:].copy(), np.zeros(1, int))
    found: list[Any] = []
    for step in (0, 1, 1):
        engine.train_step([row] * PARTS, 0.0, 1, key_of("step", made.seed, step), False)
        found.append(collectives.all_gather(losses[-PARTS:]))
    if world.rank == 0:
        out.write_text(json.dumps(found))
    collectives.leave_ranks()


if __name__ == "__main__":
    main(Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))))
