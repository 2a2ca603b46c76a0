"""`rewarm recipe`: write a recipe, and describe every field that it may have."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from tokenization import disk
from tokenization.errors import ExitCode, UserError
from trainer.cli.answer import print_answer
from trainer.cli.arguments import (
    add_command,
    add_noun,
    fraction,
    gibibytes,
    path_text,
    positive_number,
    prefix_text,
)
from trainer.machine.devices import known_gpu, usable_bytes
from trainer.recipe.reference import recipe_reference, recipe_schema

USUAL_GIB = 80.0
"""Memory of a GPU where nothing is said about it."""


def add_recipes(commands: Any) -> None:
    """Add `recipe` and its commands."""
    kinds = add_noun(commands, "recipe", "write a recipe, and describe its fields")
    schema = add_command(kinds, "schema", schema_command, "> recipe.schema.json")
    schema.set_defaults(json=True)
    add_command(kinds, "reference", reference_command, "> docs/recipe.md")
    example = "--out zh.yaml --base models/llama2-7b-zh --tokenizer tokenizers/llama2-zh --new data/zh-web"
    new = add_command(kinds, "new", new_command, f"{example} --replay data/en-web --tokens 20e9 --gpus 8")
    new.add_argument("--out", type=path_text, required=True, metavar="FILE.yaml", help="the new recipe")
    new.add_argument("--base", type=path_text, required=True, metavar="MODEL", help="directory or hub id")
    extended = "the extended tokenizer, if it is not the base's own: its new embeddings are trained first"
    new.add_argument("--tokenizer", type=path_text, metavar="TOKENIZER", help=extended)
    learnt = "shards of the data to learn, as `rewarm data prepare` writes them"
    new.add_argument("--new", type=prefix_text, nargs="+", required=True, metavar="PREFIX", help=learnt)
    kept = "shards of data like the base's own, which are replayed"
    new.add_argument("--replay", type=prefix_text, nargs="+", default=[], metavar="PREFIX", help=kept)
    ratio = "share of the tokens that is replayed (default: 25%%)"
    new.add_argument("--replay-ratio", type=fraction, default="25%", metavar="SHARE", help=ratio)
    new.add_argument("--tokens", type=positive_number, required=True, metavar="N", help="tokens to train on")
    new.add_argument(
        "--gpus", type=positive_number, default=8, metavar="N", help="ranks, one per GPU (default: 8)"
    )
    new.add_argument("--gpu", metavar="NAME", help="the GPU, such as h100 (default: any)")
    memory = "memory of a GPU in GiB (default: that of --gpu, else 80)"
    new.add_argument("--gpu-memory", type=gibibytes, metavar="GIB", help=memory)
    shape = "sizes of the base while it is not there, such as llama2-7b (default: what its name says)"
    new.add_argument("--shape", metavar="NAME", help=shape)
    length = "tokens of a sample (default: the base's context, at most 4096)"
    new.add_argument("--seq-len", type=positive_number, metavar="N", help=length)
    peak = "highest learning rate (default: 1e-4, a third of LLaMA-2's)"
    new.add_argument("--max-lr", default="1e-4", metavar="LR", help=peak)
    new.add_argument("--name", metavar="NAME", help="the run's name (default: that of the file)")


def schema_command(args: argparse.Namespace) -> int:
    """Print the JSON schema of a recipe, for editors."""
    sys.stdout.write(json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n")
    return ExitCode.DONE


def reference_command(args: argparse.Namespace) -> int:
    """Print every field of a recipe as Markdown."""
    text = recipe_reference()
    if args.json:
        print_answer(args, {"markdown": text}, text)
    else:
        sys.stdout.write(text)
    return ExitCode.DONE


def new_command(args: argparse.Namespace) -> int:
    """Write a commented recipe from a few answers, and plan it."""
    out = Path(args.out)
    if out.exists():
        raise UserError("exists already", field="--out", value=args.out, fix="give a new file")
    _, memory = known_gpu(args.gpu) if args.gpu else (None, None)
    available = usable_bytes((args.gpu_memory or memory or USUAL_GIB) * 2**30)
    from trainer.plan.new_recipe import Answers, new_recipe

    answers = Answers(
        base=args.base,
        tokenizer=args.tokenizer,
        new=args.new,
        replay=args.replay,
        tokens=args.tokens,
        gpus=args.gpus,
        name=args.name or out.stem,
        replay_ratio=args.replay_ratio,
        max_lr=args.max_lr,
        seq_len=args.seq_len,
        file=args.out,
    )
    text = new_recipe(answers, available, args.shape)
    out.parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(out, text)
    gpu = ["--gpu", args.gpu] if args.gpu else ["--gpu-memory", f"{args.gpu_memory or USUAL_GIB:g}"]
    plan = shlex.join(["rewarm", "plan", args.out, "--gpus", str(args.gpus), *gpu])
    print_answer(args, {"out": args.out}, f"{args.out} is written; see what it will do: {plan}")
    return ExitCode.DONE
