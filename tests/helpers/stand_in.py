"""A shipped recipe on a tiny stand-in: its phases, shares, schedules and sets on a model of two layers."""

from pathlib import Path

import numpy as np

from tests.helpers import runs
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.yaml_text import read_yaml

SEQ_LEN, BATCH, STEPS = 32, 8, 4
"""A phase has as many steps."""


def make_shard(data: Path, name: str) -> str:
    """A shard of random ids that no other name has; its prefix."""
    prefix = data / name.replace("/", "-")
    if prefix.with_suffix(".bin").exists():
        return str(prefix)
    tokenizer = open_tokenizer(data / "tokenizer")
    random = np.random.default_rng(list(name.encode()))
    options = {"vocab_size": tokenizer.size, "tokenizer": tokenizer.fingerprint, "eos_id": tokenizer.eos_id}
    size = 600 if name.endswith("-validation") else 8 * SEQ_LEN * BATCH * STEPS
    with ShardWriter(prefix, **options) as shard:
        for _ in range(size // 100):
            ids = random.integers(259, tokenizer.size, 100)
            shard.add_document(np.append(ids, tokenizer.eos_id), 300)
    return str(prefix)


def stand_in(path: Path, data: Path, run: Path, base: Path | None = None) -> dict:
    """The recipe as a tree whose sizes are tiny and whose paths are of `data`.

    Budgets shrink to `STEPS` steps a phase, and all that is counted in tokens with them. Weights are random,
    or those of `base`.
    """
    recipe = load_recipe(path)
    tree = read_yaml(dump_recipe(recipe))
    model = runs.tree(data, run, "")["model"]
    if base is not None:
        model |= {"init": None, "base": str(base)}
    model["activation_checkpointing"] = tree["model"]["activation_checkpointing"]
    for phase in tree["phases"]:
        budget = STEPS * SEQ_LEN * BATCH
        for segment in phase["mixture"]:
            segment["start"] = int(segment["start"]) * budget // int(phase["tokens"])
        phase["tokens"] = budget
    for source in tree["sources"].values():
        source["path"] = make_shard(data, source["path"])
    validation = tree["validation"]
    named = {role: validation[role] for role in ("upstream", "downstream") if validation[role] is not None}
    validation |= {role: make_shard(data, prefix) for role, prefix in named.items()}
    for one in validation["sets"].values():
        one["path"] = make_shard(data, one["path"])
    every = {"every_tokens": STEPS * SEQ_LEN * BATCH}
    return {
        **tree,
        "run_dir": str(run),
        "model": model,
        "deepspeed": str(runs.ROOT / tree["deepspeed"]),
        "seq_len": SEQ_LEN,
        "global_batch_size": BATCH,
        "micro_batch_size": "auto",
        "validation": {**validation, **every, "max_tokens": 128},
        "checkpoint": {**tree["checkpoint"], **every, "keep_every": None},
    }
