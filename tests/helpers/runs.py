"""Small real runs under the deepspeed launcher, for tests of what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer
from tokenization.vocabulary.train import train_vocabulary
from trainer.machine.ranks import free_port
from trainer.metrics.jsonl import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "train.py"

WORDS = "the law of a people is what it keeps while its rulers change and every year adds to it"
SIGNS = "国家为了维护人民的权利制定本法任何组织和个人都应当遵守"


def text(kind: str, documents: int, seed: int) -> list[str]:
    """Text with something to learn: English words or Chinese signs in a seeded order."""
    random = np.random.default_rng(seed)
    if kind == "en":
        return [" ".join(random.choice(WORDS.split(" "), size=40)) + "." for _ in range(documents)]
    return ["".join(random.choice(list(SIGNS), size=60)) + "。" for _ in range(documents)]


def make_data(folder: Path) -> Path:
    """A tokenizer and shards `en`, `zh` and their validation sets in `folder`."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(text("en", 400, 0) + text("zh", 400, 1)), encoding="utf-8")
    train_vocabulary([corpus], 420, folder / "tokenizer")
    tokenizer = open_tokenizer(folder / "tokenizer")
    import sentencepiece

    encoder = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer" / "tokenizer.model"))
    for name, documents, seed in (("en", 500, 2), ("zh", 900, 3), ("en-val", 20, 4), ("zh-val", 20, 5)):
        size, eos = tokenizer.size, tokenizer.eos_id
        with ShardWriter(
            folder / name, vocab_size=size, tokenizer=tokenizer.fingerprint, eos_id=eos
        ) as shard:
            for document in text(name[:2], documents, seed):
                ids = [*encoder.encode(document), tokenizer.eos_id]
                shard.add_document(np.array(ids), len(document.encode()))
    return folder


def recipe(data: Path, run: Path, stage: int = 2, phases: int = 1, **changes: Any) -> dict[str, Any]:
    """A run of 12 steps of 8 samples per phase, saved every 4 steps, at a plain ZeRO stage."""
    presets = data / "presets"
    presets.mkdir(exist_ok=True)
    preset = presets / f"zero{stage}.json"
    preset.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return tree(data, run, str(preset), phases, **changes)


def tree(data: Path, run: Path, preset: str, phases: int = 1, **changes: Any) -> dict[str, Any]:
    """The recipe of such a run, as YAML holds it."""
    step = 8 * 32
    fields = {
        "name": run.name,
        "run_dir": str(run),
        "model": {
            "tokenizer": str(data / "tokenizer"),
            "dtype": "fp32",
            "init": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
        },
        "deepspeed": preset,
        "seq_len": 32,
        "global_batch_size": 8,
        "sources": {
            "zh": {"path": str(data / "zh"), "role": "new", "max_epochs": 4},
            "en": {"path": str(data / "en"), "role": "replay", "max_epochs": 4},
        },
        "phases": [
            {
                "name": f"phase-{number}",
                "tokens": 12 * step,
                "mixture": {"zh": "1/4", "en": "3/4"} if number == 0 else {"zh": "4/5", "en": "1/5"},
                "schedule": {"kind": "cosine", "max_lr": 1e-2, "warmup": "25%"},
            }
            for number in range(phases)
        ],
        "validation": {
            "every_tokens": 6 * step,
            "upstream": str(data / "en-val"),
            "downstream": str(data / "zh-val"),
        },
        "checkpoint": {"every_tokens": 4 * step, "keep_last": 2},
        "allow": ["rewarm_on_same_data"],
    }
    return {**fields, **changes}


def write(tree: dict, path: Path) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(tree))
    return path


def environment() -> dict[str, str]:
    """One thread per rank on the CPU, and no trace of an outer launcher."""
    gone = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}


def command(
    recipe: Path, ranks: int, *overrides: str, port: int | None = None, script: Path = SCRIPT
) -> list[str]:
    """What a user would type."""
    return [*launcher(ranks, port), str(script), str(recipe), *overrides]


def launcher(ranks: int, port: int | None = None) -> list[str]:
    """The launcher and where its ranks run."""
    return ["deepspeed", "--num_accelerators", str(ranks), "--master_port", str(port or free_port())]


def launch(
    recipe: Path,
    ranks: int,
    *overrides: str,
    timeout: float = 240,
    port: int | None = None,
    script: Path = SCRIPT,
) -> subprocess.CompletedProcess[str]:
    """Trains to the end; the caller checks `returncode`."""
    return subprocess.run(
        command(recipe, ranks, *overrides, port=port, script=script),
        env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of several in a launch."""

    tree: dict
    """The recipe."""
    after: tuple[Path, int] | None = None
    """Go on in the new run directory from this run's checkpoint of a step."""
    poison: tuple[int, ...] = ()
    """The steps of this start, from 1, at which the last rank's last loss becomes infinite."""
    spikes: tuple[int, ...] = ()
    """The samples of a phase at which a step begins whose loss is fifty times what it is."""


def launch_several(folder: Path, jobs: list[Job], ranks: int, timeout: float = 500) -> list[dict]:
    """Trains several recipes one after another in the same processes; what each ended with.

    A launch costs more than a tiny run, and a process may train as many as it likes.
    """
    listed = [
        {
            "recipe": str(write(job.tree, folder / f"{Path(job.tree['run_dir']).name}.yaml")),
            "after": job.after and str(job.after[0] / "checkpoints" / f"step-{job.after[1]:08d}"),
            "poison": job.poison,
            "spikes": job.spikes,
        }
        for job in jobs
    ]
    todo = folder / f"jobs-{ranks}.json"
    todo.write_text(json.dumps(listed))
    worker = str(ROOT / "tests" / "integration" / "several_runs_worker.py")
    done = subprocess.run(
        [*launcher(ranks), worker, str(todo)],
        env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(todo.with_suffix(".done").read_text())


def kill_after(recipe: Path, run: Path, ranks: int, step: int, *overrides: str, timeout: float = 240) -> int:
    """Starts a run and kills all its processes once a record of `step` is written; the last step seen."""
    process = subprocess.Popen(
        command(recipe, ranks, *overrides),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + timeout
    while last_step(run) < step:
        assert process.poll() is None, f"the run ended before step {step}"
        assert time.monotonic() < deadline, f"step {step} was not reached in {timeout} s"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return last_step(run)


def last_step(run: Path) -> int:
    """The newest step in metrics.jsonl; 0 before the first."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def trace(run: Path) -> list[dict]:
    """The history of a run as it stands: what must be equal between two runs, step by step."""
    streams = ("eval/upstream/bits_per_byte", "eval/downstream/bits_per_byte", "eval/upstream/forgetting")
    losses = ("loss/train", "loss/source/zh", "loss/source/en", "grad_norm", "data/samples_crc32")
    kept = ("step", "tokens", "lr", *losses, "tokens/source/zh", "tokens/source/en", *streams)
    return [{name: record[name] for name in kept if name in record} for record in read_metrics(run)]


def manifest(run: Path, step: int) -> dict:
    """What a committed checkpoint says of itself."""
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())


def long_recipe(data: Path, run: Path, steps: int) -> dict:
    """One phase of so many steps, saved every third."""
    tree = recipe(data, run, name="long")
    step = 8 * 32
    tree["phases"][0]["tokens"] = steps * step
    tree["checkpoint"]["every_tokens"] = 3 * step
    for source in tree["sources"].values():
        source["max_epochs"] = None
    return tree
