"""What each rank of `benchmarks.plan measured` does: two steps of a small model, all tensors counted."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import deepspeed

from benchmarks.gpu.models import Size, build, recipe, rows
from benchmarks.traced import LiveBytes
from trainer.engine.ds_config import complete, read_preset
from trainer.engine.engine import Engine, sharded_loading
from trainer.engine.layout import Layout
from trainer.machine import collectives
from trainer.model.trainable import parameter_groups

MICRO = 2
ACCUMULATION = 2
SIZE = Size(hidden=256, layers=8, heads=8, vocab=2000, seq_len=128, batch=MICRO * ACCUMULATION)


def measure(preset: str, dtype: str, recompute: str) -> dict[str, Any]:
    """Return the peak of the second step in bytes: the first one makes the moments."""
    deepspeed.init_distributed()
    world, rank = collectives.world_size(), collectives.rank()
    size = Size(**{**vars(SIZE), "batch": SIZE.batch * world})
    made = recipe(size, dtype, f"model.activation_checkpointing={recompute}")
    layout = Layout(world, MICRO, ACCUMULATION)
    config = complete(read_preset(preset), made, layout, {**size.init, "vocab_size": size.vocab})
    live = LiveBytes()
    with live:
        with sharded_loading(config) as initialize:
            model = build(made, size.vocab, initialize=initialize)
        engine = Engine(model, parameter_groups(model, made.phases[0], 0.1), config, made.optimizer)
        drawn = rows(size, 0)
        own = type(drawn)(drawn.input_ids[rank::world], drawn.targets[rank::world], drawn.source[rank::world])
        for step in range(2):
            gc.collect()
            live.peak = live.now
            engine.train_step(own.split(MICRO), 1e-3, sources=1, seed=step, stop=False)
    bucket = config["zero_optimization"]["reduce_bucket_size"]
    return {
        "peak": live.peak,
        "bucket": bucket,
        "rank": rank,
        "world": world,
        **size.init,
        "vocab_size": size.vocab,
    }


if __name__ == "__main__":
    found = measure(*sys.argv[1:4])
    if found["rank"] == 0:
        print("\n" + json.dumps(found), flush=True)
