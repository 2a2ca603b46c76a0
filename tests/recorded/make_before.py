"""Makes with the code that is checked out what commit 85773d8 made for `made_by_85773d8/`.

    python tests/recorded/make_before.py --out DIR

A tokenizer, token shards, a run that was stopped before its end, its export, and what `rewarm` answered
about them (`answers.json`) are written to DIR, which must not exist yet, and nowhere else. All paths in
them are relative to DIR. Never replace what a commit made: later code must go on reading it.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from tests.recorded import jobs

from tests.helpers import runs

DOCUMENTS = {"en": 120, "zh": 60}
CHECKPOINT = "run/checkpoints/step-00000008"
VALIDATION = ("data/en-validation", "data/zh-validation")


def documents(language: str, seed: int) -> list[str]:
    """Short documents, so that most samples hold the end of one."""
    random = np.random.default_rng(seed)
    count = DOCUMENTS[language]
    if language == "en":
        return [" ".join(random.choice(runs.WORDS.split(), random.integers(3, 12))) for _ in range(count)]
    return ["".join(random.choice(list(runs.SIGNS), random.integers(8, 30))) for _ in range(count)]


def call(folder: Path, *command: str) -> str:
    """Runs a command in `folder`, and gives what it answered."""
    done = subprocess.run(
        command, cwd=folder, env=runs.environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def make(folder: Path) -> None:
    """Makes everything in `folder`, which is empty."""
    for name in ("recipe.yaml", "zero2.json"):
        shutil.copy(jobs.MADE / name, folder)
    for seed, language in enumerate(DOCUMENTS):
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in documents(language, seed))
        (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts = [f"{language}.jsonl" for language in DOCUMENTS]
    call(folder, "rewarm", "vocab", "train", "--input", *texts, "--size", "320", "--out", "tokenizer")
    for language in DOCUMENTS:
        shards = ("--input", f"{language}.jsonl", "--tokenizer", "tokenizer", "--out", f"data/{language}")
        call(folder, "rewarm", "data", "prepare", *shards, "--validation", "10%", "--workers", "1")
    call(folder, *runs.command(Path("recipe.yaml"), 2, f"stop_after={8 * jobs.STEP}"))
    call(folder, "rewarm", "export", CHECKPOINT, "--out", "export")
    answers = {
        "inspect": {
            prefix: json.loads(call(folder, "rewarm", "data", "inspect", prefix, "--json"))
            for prefix in (*(f"data/{language}" for language in DOCUMENTS), *VALIDATION)
        },
        "eval": {
            model: json.loads(
                call(folder, "rewarm", "eval", model, "--data", *VALIDATION, *context, "--json")
            )
            for model, *context in ((CHECKPOINT,), ("export", "--seq-len", "32"))
        },
        "environment": jobs.environment(),
    }
    (folder / "answers.json").write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    (folder / "run" / ".lock").unlink()  # it names this machine
    for text in texts:
        (folder / text).unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    out = parser.parse_args().out
    if out.exists():
        sys.exit(f"{out}: exists; give another --out")
    out.mkdir(parents=True)
    make(out)


if __name__ == "__main__":
    main()
