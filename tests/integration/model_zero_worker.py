"""What each rank of test_model_zero.py does: the same models at every ZeRO stage, one after another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from model_tiny import INIT, from_base, recipe, tokens

from trainer.model.build import build
from trainer.model.loss import CausalLM
from trainer.model.trainable import parameter_groups

PIECES, OLD = 90, 70
STEPS = 3


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
        return parameter.detach().clone()


def run(make: Any, stage: int, dtype: str, train: str) -> dict[str, Any]:
    """Builds and trains a few steps; the weights before and after, and the losses."""
    world, rank = dist.get_world_size(), dist.get_rank()
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4 // world,
        "train_batch_size": 4,
        "gradient_clipping": 1.0,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": 10_000,  # the default takes gigabytes, however small the model
            "allgather_bucket_size": 10_000,
        },
    }
    if dtype != "fp32":
        config[dtype] = {"enabled": True}
    held = HfDeepSpeedConfig(config) if stage == 3 else None
    plan = make(f"model.dtype={dtype}")
    causal: CausalLM = build(plan, PIECES)
    causal.hf.config.base_vocab_size = OLD
    groups = parameter_groups(causal, plan.phases[0].model_copy(update={"train": train}), 0.1)
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    engine, *_ = deepspeed.initialize(model=causal, optimizer=adam, config=config)
    before = {name: whole(parameter) for name, parameter in causal.named_parameters()}
    losses = []
    for step in range(STEPS):
        mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
        ids = tokens(4, 17, pieces=PIECES, seed=step)[mine]
        positions = torch.tensor([*range(9), *range(7)]).expand(len(ids), -1)
        total, _, _ = engine(ids[:, :-1], ids[:, 1:], positions)
        engine.backward(total * world / 64, scale_wrt_gas=False)
        engine.step()
        loss = total.detach().clone()
        dist.all_reduce(loss)
        losses.append(loss.item() / 64)
    after = {name: whole(parameter) for name, parameter in causal.named_parameters()}
    rotary = causal.hf.base_model.rotary_emb.inv_freq.dtype
    engine.destroy()
    del held
    unset_hf_deepspeed_config()
    return {"before": before, "after": after, "losses": losses, "rotary": rotary}


def main(base: Path, out: Path) -> None:
    deepspeed.init_distributed()
    found: dict[str, Any] = {}

    def record(key: str, make: Any, stage: int, dtype: str = "fp32", train: str = "all") -> None:
        found[f"{key}/{stage}"] = run(make, stage, dtype, train)

    tied = {**INIT["llama"], "tie_word_embeddings": "true"}
    for stage in (0, 1, 2, 3):
        for kind, init in INIT.items():
            full = () if kind == "llama" else ("model.activation_checkpointing=full",)
            record(f"random/{kind}", lambda *over, i=init, f=full: recipe(*over, *f, **i), stage)
        record("base", lambda *over: from_base(base, *over), stage)
        record("bf16", lambda *over: recipe(*over), stage, "bf16")
        for dtype in ("fp32", "bf16"):
            record(f"new_rows/{dtype}", lambda *over: recipe(*over), stage, dtype, "new_rows")
        record("tied/new_rows", lambda *over: recipe(*over, **tied), stage, train="new_rows")
    if dist.get_rank() == 0:
        torch.save(found, out / "found.pt")
        (out / "done.json").write_text(json.dumps({"world_size": dist.get_world_size()}))


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(arguments[0]), Path(arguments[1]))
