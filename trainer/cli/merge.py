"""`rewarm merge`: the average of models, and one that stands for a decay of the learning rate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenization.errors import ExitCode, UserError
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, fraction, path_text, positive_number


def add_merge(commands: Any) -> None:
    """Add `merge`."""
    merge = add_command(commands, "merge", merge_command, "base run/ --weights 0.3,0.7 --out models/merged")
    models = "exports, model directories, hub ids, checkpoints, or runs for their newest one"
    merge.add_argument("models", type=path_text, nargs="+", metavar="MODEL", help=models)
    weights = "weight of each model; together 1 (default: all the same)"
    merge.add_argument("--weights", type=fractions, metavar="W,…", help=weights)
    decay = "of one run: weights over its checkpoints at a constant LR that stand for this decay"
    merge.add_argument("--decay", choices=("linear", "cosine", "sqrt"), help=decay)
    last = "with --decay: only the newest N of these checkpoints (default: all)"
    merge.add_argument("--last", type=positive_number, metavar="N", help=last)
    stored = "type of the stored weights (default: bf16)"
    merge.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16", help=stored)
    merge.add_argument("--out", type=path_text, required=True, metavar="DIR", help="the new model directory")


def fractions(text: str) -> list[float]:
    """Parse exact numbers between commas: `0.3,0.7` or `1/3,1/3,1/3`."""
    return [float(fraction(part)) for part in text.split(",")]


def merge_command(args: argparse.Namespace) -> int:
    """Average models, weight by weight."""
    from tokenization.disk import refuse_existing
    from trainer.checkpoint.merge import merge_models

    refuse_existing(args.out)
    models, weights, how = list(args.models), args.weights, ""
    if args.decay:
        if args.weights or len(models) != 1:
            fix = "give one run, and no --weights"
            raise UserError("makes the weights over the checkpoints of one run", field="--decay", fix=fix)
        from trainer.checkpoint.decay import constant_stretch, decay_of

        chosen = constant_stretch(Path(models[0]), args.last)
        weights, apart = decay_of(args.decay, chosen)
        how = f"with the weights of a {args.decay} decay over the last {apart:,} tokens"
        names, models = [str(one.path) for one in chosen], chosen
    elif args.last:
        raise UserError("chooses checkpoints for --decay", field="--last", fix="add --decay, or remove it")
    else:
        names = models
        weights = [1 / len(models)] * len(models) if weights is None else weights
    notes = merge_models(models, weights, args.out, args.dtype, how)
    table = [{"model": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
    lines = [f"{args.out}: the average of {len(names)} models in {args.dtype}{', ' * bool(how)}{how}"]
    lines += [f"{row['weight']:9.6f}  {row['model']}" for row in table]
    data = {"out": args.out, "models": table, "dtype": args.dtype, "how": how, "notes": notes}
    print_answer(args, data, "\n".join([*lines, *notes]))
    return ExitCode.DONE
