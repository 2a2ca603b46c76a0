"""Studies without training: run directories as a study leaves them, with scores chosen by the test."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.recipe.load import dump_recipe, load_recipe
from trainer.study.results import Arm, Planned, ScoreCurve, StudyRecord, write_record

QUICKSTART = Path(__file__).resolve().parents[2] / "launch" / "recipes" / "quickstart.yaml"
STEP = 2048
"""Tokens in a step of the quickstart."""

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": False,
}


def write_run(
    run: Path,
    upstream: Sequence[float],
    downstream: Sequence[float],
    *,
    overrides: Sequence[str] = (),
    steps: int = 100,
    unfinished: bool = False,
) -> None:
    """A run whose scores were measured at equal distances from its first token to its last one."""
    run.mkdir(parents=True)
    words = (f"phases.0.tokens={steps * STEP}", *overrides)
    (run / "recipe.resolved.yaml").write_text(dump_recipe(load_recipe(QUICKSTART, words)), encoding="utf-8")
    (run / "identity.json").write_text(
        json.dumps({f"model.{name}": json.dumps(value) for name, value in CONFIG.items()})
    )
    lines = [{"number": 1, "restored_step": None, "time": 1.0, "run_id": "x"}]
    for place, (old, new) in enumerate(zip(upstream, downstream, strict=True)):
        step = place * steps // (len(upstream) - 1) // (2 if unfinished else 1)
        scores = {"eval/upstream/bits_per_byte": old, "eval/downstream/bits_per_byte": new}
        nats = {"eval/upstream/nats_per_token": 2 * old, "eval/downstream/nats_per_token": 2 * new}
        lines.append({"attempt": 1, "time": 2.0, "step": step, "tokens": step * STEP, **scores, **nats})
    texts = [
        {name: str(v) if v != v or v in (float("inf"),) else v for name, v in line.items()} for line in lines
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))


def write_study(
    out: Path,
    study: str,
    ends: dict[str, Sequence[tuple[float, float]]],
    base: tuple[float, float] = (2.0, 3.0),
) -> None:
    """A study whose arm NAME ended with seed i at the pair `ends[NAME][i]` of (upstream, downstream)."""
    planned = []
    for name, pairs in ends.items():
        for seed, (old, new) in enumerate(pairs):
            directory = name if seed == 0 else f"{name}-seed-{seed}"
            planned.append(Planned(name, directory, seed))
            middle = ((base[0] + old) / 2, (base[1] + new) / 2)
            write_run(out / directory, (base[0], middle[0], old), (base[1], middle[1], new))
    write_record(out, StudyRecord(study, "recipe.yaml", tuple(planned)))


def arm(
    name: str,
    seed: int,
    upstream: float,
    downstream: float,
    *,
    early: float | None = None,
    base: tuple[float, float] = (2.0, 3.0),
    tokens: int = 1000,
    **changes: object,
) -> Arm:
    """A finished arm that ended at these bits per byte; `early`: its upstream score after a tenth."""
    places = (0, tokens // 10, tokens)
    old = (base[0], upstream if early is None else early, upstream)
    new = (base[1], (base[1] + downstream) / 2, downstream)
    fields = {
        "name": name, "seed": seed, "size": "", "fields": {}, "parameters": 1_000_000, "tokens": tokens,
        "replay": 0.0, "upstream": ScoreCurve(places, old, old), "downstream": ScoreCurve(places, new, new),
        "finished": True, "diverged": False, "from_scratch": False, "directory": Path(name),
    }  # fmt: skip
    return Arm(**{**fields, **changes})


def make_trunk(path: Path) -> Path:
    """A run with checkpoints at steps 4 and 8, and metrics up to step 9, of which the last line is torn."""
    for step in (4, 8):
        folder = path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "rank-0.safetensors").write_bytes(bytes([step]) * 10)
        (folder / "COMMITTED").write_text("")
    (path / "last_committed.json").write_text('{"step": 8}')
    (path / "identity.json").write_text('{"model.hidden_size": "8"}')
    (path / "recipe.resolved.yaml").write_text("name: trunk")
    (path / ".lock").write_text("")
    lines = [{"number": 1, "restored_step": None, "time": 1.0, "run_id": "of-the-trunk", "measured_on": {}}]
    lines += [{"attempt": 1, "time": 1.0, "step": step, "tokens": step} for step in range(10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"att')
    return path


def write_lawful_study(out: Path, seeds: int = 2, scores: int = 9) -> None:
    """A study of replay whose upstream scores follow the law of forgetting, and downstream that of D-CPT."""
    random = np.random.default_rng(0)
    planned = []
    for seed in range(seeds):
        for share in (0, 1, 5, 10, 25, 50):
            directory = f"replay-{share}" + (f"-seed-{seed}" if seed else "")
            planned.append(Planned(f"replay-{share}", directory, seed))
            part, tokens = share / 100, np.linspace(0, 1, scores)
            noise = 0.002 * random.normal(size=(2, scores)) * (tokens > 0)
            old = 2 + 1.2 * tokens**0.45 / (1 + 300 * part) ** 0.5 + noise[0]
            new = 1.5 + 0.5 * (1 - part) ** 0.5 / (0.1 + tokens) ** 0.3 + noise[1]
            write_run(
                out / directory, old.tolist(), new.tolist(),
                overrides=(f"phases.0.mixture.replay_ratio={share}%", f"seed={seed}"),
            )  # fmt: skip
    write_record(out, StudyRecord("replay", "recipe.yaml", tuple(planned)))
