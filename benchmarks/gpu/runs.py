"""Small real runs through `launch/train.py`, for steps that kill, resume and compare them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]

ON_CPU = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "CXX": "no-compiler-is-needed",
}
"""Environment of a run that sees no card and compiles nothing."""

SAME = ("loss/train", "grad_norm", "lr", "data/samples_crc32", "eval/upstream/bits_per_byte")
"""What two runs of one recipe have in common at each step."""


def make_data(folder: Path) -> Path:
    """A tokenizer of 300 pieces, and shards `en`, `zh` and `en-val` of ids of which some are frequent."""
    from tokenization.shards.writer import ShardWriter
    from tokenization.tokenizer.files import open_tokenizer
    from tokenization.vocabulary.train import train_vocabulary

    corpus = folder / "corpus.txt"
    words = ("the law of a people is what it keeps while its rulers", "国家为了维护人民的权利制定本法")
    random = np.random.default_rng(0)
    corpus.write_text("\n".join(" ".join(random.choice(words, 3)) for _ in range(800)), encoding="utf-8")
    train_vocabulary([corpus], 300, folder / "tokenizer")
    tokenizer = open_tokenizer(folder / "tokenizer")
    for name, documents in (("en", 4000), ("zh", 4000), ("en-val", 10)):
        with ShardWriter(
            folder / name,
            vocab_size=tokenizer.size,
            tokenizer=tokenizer.fingerprint,
            eos_id=tokenizer.eos_id,
        ) as shard:
            for _ in range(documents):
                ids = np.minimum(2 + random.zipf(1.3, 120), tokenizer.size - 1)
                shard.add_document(np.where(ids == tokenizer.eos_id, 5, ids), 480)
    return folder


def recipe(
    data: Path,
    run: Path,
    *,
    steps: int,
    save_every: int,
    preset: str = "zero1.json",
    dtype: str = "fp32",
    attention: str = "auto",
    hidden: int = 256,
    layers: int = 4,
    seq_len: int = 128,
    micro_batch_size: int = 4,
) -> Path:
    """Return a recipe file: one phase, 8 samples a step, saved asynchronously every so many steps."""
    step = 8 * seq_len
    tree: dict[str, Any] = {
        "name": run.name,
        "run_dir": str(run),
        "model": {
            "tokenizer": str(data / "tokenizer"),
            "dtype": dtype,
            "attention": attention,
            "init": {
                "hidden_size": hidden,
                "intermediate_size": hidden * 8 // 3 // 32 * 32 or 64,
                "num_hidden_layers": layers,
                "num_attention_heads": max(hidden // 128, 4),
            },
        },
        "deepspeed": str(ROOT / "ds_configs" / preset),
        "seq_len": seq_len,
        "global_batch_size": 8,
        "micro_batch_size": micro_batch_size,
        "sources": {
            "zh": {"path": str(data / "zh"), "role": "new", "max_epochs": None},
            "en": {"path": str(data / "en"), "role": "replay", "max_epochs": None},
        },
        "phases": [
            {
                "name": "only",
                "tokens": steps * step,
                "mixture": {"zh": "3/4", "en": "1/4"},
                "schedule": {"kind": "cosine", "max_lr": "1e-3", "warmup": "10%"},
            }
        ],
        "validation": {"every_tokens": steps // 2 * step, "upstream": str(data / "en-val")},
        "checkpoint": {"every_tokens": save_every * step, "keep_last": 2, "asynchronous": True},
        "logging": {"tensorboard": False},
    }
    path = data / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


class Run:
    """A training process, or a launcher and its ranks, in a session of its own."""

    def __init__(
        self,
        recipe: Path,
        *overrides: str,
        on_cpu: bool = False,
        launcher: bool = False,
    ) -> None:
        """Start it in a process of its own."""
        self.log = recipe.with_name(f"{recipe.stem}-{time.monotonic_ns()}.log")
        words = [str(recipe), *overrides]
        added = ON_CPU if on_cpu else {}
        script = str(ROOT / "launch" / "train.py")
        port = ["--master_port", str(free_port())]
        launch = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "1", *port] if launcher else []
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *launch, script, *words],
                env=environment(added), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float) -> int | None:
        """Return the exit status; None if it was killed since it took too long."""
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                return None
            time.sleep(0.01)
        return status

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.005)

    def last_words(self) -> str:
        """Return the end of what it printed, in one line."""
        said = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return " | ".join(line.strip() for line in said.splitlines() if line.strip())[-400:]


_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's, without the trace of a launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER}
    if added:
        kept.setdefault("OMP_NUM_THREADS", "4")  # several run at a time
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", **added}


def free_port() -> int:
    """Return a port that nobody listens to just now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_step(run: Path) -> int:
    """Return the newest step in metrics.jsonl; 0 before the first."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
    return int(json.loads(lines[-1]).get("step", 0)) if lines else 0


def last_saved(run: Path) -> int:
    """Return the newest committed checkpoint's step; 0 if there is none."""
    saved = run.glob("checkpoints/step-*/COMMITTED")
    return max((int(path.parent.name.removeprefix("step-")) for path in saved), default=0)


def trace(run: Path) -> dict[int, dict[str, float]]:
    """By step, what must be the same in a run of the same recipe."""
    from trainer.metrics.jsonl import read_metrics

    return {
        record["step"]: {name: record[name] for name in SAME if name in record}
        for record in read_metrics(run)
    }


def first_difference(one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]]) -> str:
    """Return where two traces part, in words; empty where they do not."""
    for step in sorted(set(one) | set(other)):
        here, there = one.get(step), other.get(step)
        if here is None or there is None:
            return f"step {step} is missing in one"
        for name in SAME:
            if here.get(name) != there.get(name):
                return f"step {step}: {name} {here.get(name)!r} and {there.get(name)!r}"
    return ""


def largest_difference(
    one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]]
) -> float:
    """Of the losses at the steps that both have, relative."""
    losses = [
        (one[step]["loss/train"], other[step]["loss/train"])
        for step in sorted(set(one) & set(other))
        if "loss/train" in one[step] and "loss/train" in other[step]
    ]
    return max((abs(a - b) / abs(a) for a, b in losses), default=float("nan"))
