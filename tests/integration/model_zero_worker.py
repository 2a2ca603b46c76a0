"""What each rank of test_model_zero.py does: the same models at every ZeRO stage, one after another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from tests.helpers.model_tiny import INIT, build, from_base, recipe, tokens
from trainer.engine.engine import Engine, sharded_loading
from trainer.mixer.batch import MicroBatch
from trainer.model.loss import CausalLM
from trainer.model.trainable import parameter_groups
from trainer.recipe.schema import Phase

PIECES, OLD = 90, 70
STEPS = 3
SCALE = {"embeddings": 2.0, "new_rows": 5.0}


def batch(step: int, part: int, parts: int) -> MicroBatch:
    """A part of a global batch of four rows, each of a document of 9 and one of 7 tokens."""
    ids = tokens(4, 17, pieces=PIECES, seed=step)[part * 4 // parts : (part + 1) * 4 // parts].numpy()
    positions = np.broadcast_to(np.array([*range(9), *range(7)]), (len(ids), 16)).copy()
    return MicroBatch(ids[:, :-1].copy(), ids[:, 1:].copy(), np.zeros(len(ids), int), positions)


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
        return parameter.detach().clone()


def run(make: Any, stage: int, dtype: str, train: str, scale: dict[str, float], parts: int) -> dict[str, Any]:
    """Builds and trains a few steps, each cut into `parts`; the weights before and after, and the losses."""
    rank, own = dist.get_rank(), parts // dist.get_world_size()
    config: dict[str, Any] = {
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 4 // parts,
        "train_batch_size": 4,
        "gradient_clipping": 1.0 if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": 10_000,  # the default takes gigabytes, however small the model
            "allgather_bucket_size": 10_000,
        },
    }
    if dtype != "fp32":
        config[dtype] = {"enabled": True}
    plan = make(f"model.dtype={dtype}")
    with sharded_loading(config) as initialize:
        causal: CausalLM = build(plan, PIECES, initialize=initialize)
    causal.hf.config.base_vocab_size = OLD
    schedule = plan.phases[0].schedule.model_copy(update={"lr_scale": scale})
    phase: Phase = plan.phases[0].model_copy(update={"train": train, "schedule": schedule})
    engine = Engine(causal, parameter_groups(causal, phase, 0.1), config, plan.optimizer)
    before = {name: whole(parameter) for name, parameter in causal.named_parameters()}
    losses = []
    for step in range(STEPS):
        micro = [batch(step, part, parts) for part in range(rank * own, (rank + 1) * own)]
        result = engine.train_step(micro, 1e-3, sources=1, seed=step, stop=False)
        losses.append(result.source_nats.item() / 64)
    after = {name: whole(parameter) for name, parameter in causal.named_parameters()}
    rotary = causal.hf.base_model.rotary_emb.inv_freq.dtype
    engine.close()
    return {"before": before, "after": after, "losses": losses, "rotary": rotary}


def main(base: Path, out: Path) -> None:
    deepspeed.init_distributed()
    found: dict[str, Any] = {}

    def record(
        key: str,
        make: Any,
        stage: int,
        dtype: str = "fp32",
        train: str = "all",
        parts: int = 0,
        **scale: float,
    ) -> None:
        found[f"{key}/{stage}"] = run(make, stage, dtype, train, scale, parts or dist.get_world_size())

    tied = {**INIT["llama"], "tie_word_embeddings": "true"}
    for stage in (0, 1, 2, 3):
        for kind, init in INIT.items():
            full = () if kind == "llama" else ("model.activation_checkpointing=full",)
            record(f"random/{kind}", lambda *over, i=init, f=full: recipe(*over, *f, **i), stage)
        compiled = ("model.compile=true", "model.activation_checkpointing={every_n: 2}")
        # In the same parts at every world size, so that what one launch compiles is in the cache of the next.
        record("compiled", lambda *over, c=compiled: recipe(*over, *c), stage, parts=2)
        record("narrow", lambda *over: recipe(*over, "optimizer.state_dtype=bf16"), stage)
        record("base", lambda *over: from_base(base, *over), stage)
        # Stage 0 has no fp32 master weights, so that the trainer refuses 16 bits there.
        if stage:
            record("bf16", lambda *over: recipe(*over), stage, "bf16")
        for dtype in ("fp32", "bf16") if stage else ("fp32",):
            record(f"new_rows/{dtype}", lambda *over: recipe(*over), stage, dtype, "new_rows")
        record("tied/new_rows", lambda *over: recipe(*over, **tied), stage, train="new_rows")
        record("scaled", lambda *over: recipe(*over), stage, **SCALE)
        record("tied/scaled", lambda *over: recipe(*over, **tied), stage, **SCALE)
    if dist.get_rank() == 0:
        torch.save(found, out / "found.pt")
        (out / "done.json").write_text(json.dumps({"world_size": dist.get_world_size()}))


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(arguments[0]), Path(arguments[1]))
