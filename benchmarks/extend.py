"""A real 32,000-piece base vocabulary and 8,000 Chinese pieces: what they save, what they leave alone.

    python benchmarks/extend.py --text runs/quickstart/text

`--text` is a folder that `launch/quickstart/texts.py` wrote. The base is the LLaMA-layout tokenizer of the
package mistral-common, fetched and checked as the texts are. The pieces are trained on chinese-train.jsonl
and judged on chinese-validation.jsonl; English is judged by the part of a sentence.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ADDED = 8000
"""Chinese pieces that are added; more are trained, since the base has some of them already."""

ENGLISH_LINES = 100_000


def main() -> None:
    """Print the table."""
    import sentencepiece

    from launch.quickstart.texts import base_tokenizer
    from tokenization.vocabulary import extend, train

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True)
    text = parser.parse_args().text
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "base.model").write_bytes(base_tokenizer())
        train.train_vocabulary([text / "chinese-train.jsonl"], 3 * ADDED // 2, folder / "zh")
        made = extend.extend_vocabulary(
            folder / "base.model", folder / "zh", folder / "extended", max_pieces=ADDED
        )
        base, extended = (
            sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
            for name in ("base.model", "extended/tokenizer.model")
        )
        print(f"{made.base_pieces:,} pieces and {made.added:,} Chinese ones\n")
        chinese = [line for document in _documents(text / "chinese-validation.jsonl") for line in document]
        size = sum(len(line.encode()) for line in chinese)
        before, after = (sum(map(len, processor.encode(chinese))) for processor in (base, extended))
        english = [
            sentence
            for name in ("english-train.jsonl", "english-validation.jsonl")
            for document in _documents(text / name)
            for line in document
            for sentence in re.split(r"(?<=[.;:,?!]) ", line)
        ]
        changed = sum(a != b for a, b in zip(base.encode(english), extended.encode(english), strict=True))
    assert len(english) >= ENGLISH_LINES, f"only {len(english)} English lines"
    print("| held-out Chinese | base | extended | |\n|---|---:|---:|---:|")
    print(f"| bytes per token | {size / before:.2f} | {size / after:.2f} | {before / after:.2f}× |\n")
    print(f"English lines whose ids changed: {changed} of {len(english):,}")


def _documents(path: Path) -> list[list[str]]:
    """Return the lines of each document."""
    with open(path, encoding="utf-8") as records:
        return [json.loads(record)["text"].splitlines() for record in records]


if __name__ == "__main__":
    main()
