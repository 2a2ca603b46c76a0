"""Load an exported model with transformers, compare it with the run's weights, and generate text.

python launch/quickstart/check_export.py --run RUN --model DIR --prompt TEXT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.checkpoint import history, rank_files
from trainer.model.architecture import read_config
from trainer.model.build import build_model
from trainer.recipe.load import parse_recipe
from trainer.storage.run_directory import RunDirectory


def main() -> int:
    """Return 0 if the logits agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    exported = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)

    checkpoint = history.scan_checkpoints(RunDirectory(args.run).checkpoints)[0][-1]
    config, recipe = read_config(checkpoint.path), parse_recipe(checkpoint.manifest.recipe)
    trained = build_model(config, recipe, len(tokenizer), weights=False)
    reader = rank_files.Reader(checkpoint.files)
    trained.load_state_dict(
        {name: reader.whole(name) for name in trained.state_dict() if name in reader.pieces}
    )

    ids = tokenizer(args.prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        difference = (exported(ids).logits - trained.hf(ids).logits[..., : len(tokenizer)]).abs().max().item()
    torch.manual_seed(0)
    written = exported.generate(ids, max_new_tokens=60, do_sample=True, top_k=20)
    step = checkpoint.manifest.step
    print(f"largest difference of logits between {args.model.name} and step {step}: {difference:g}")
    text = tokenizer.decode(written[0], skip_special_tokens=True)
    print(f"generated text: {' '.join(text.split())}")
    return 0 if difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
