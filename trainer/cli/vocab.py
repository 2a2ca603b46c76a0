"""`rewarm vocab`: train, extend and examine vocabularies."""

from __future__ import annotations

import argparse
from typing import Any

from tokenization.errors import ExitCode
from trainer.cli.answer import print_answer
from trainer.cli.arguments import (
    add_command,
    add_noun,
    add_overwrite,
    add_rejects,
    add_text,
    path_text,
    positive_number,
    whole_number,
)


def add_vocab(commands: Any) -> None:
    """Add `vocab` and its commands."""
    kinds = add_noun(commands, "vocab", "train, extend and examine vocabularies")
    train = add_command(kinds, "train", train_vocabulary_command, "--input zh.jsonl --size 8000 --out zh")
    add_text(train, "--input", required=True)
    train.add_argument("--size", type=positive_number, required=True, metavar="N", help="number of pieces")
    train.add_argument("--out", type=path_text, required=True, metavar="DIR", help="the new tokenizer")
    seed = "seed of the choice of lines where there is more text than fits (default: 0)"
    train.add_argument("--seed", type=whole_number, default=0, metavar="N", help=seed)
    add_rejects(train)
    add_overwrite(train)

    extend = add_command(kinds, "extend", extend_vocabulary_command, "--base llama2 --add zh --out llama2-zh")
    base = "the tokenizer to extend: its model's directory, or a SentencePiece .model file"
    extend.add_argument("--base", type=path_text, required=True, metavar="TOKENIZER", help=base)
    new = "the tokenizer with the new pieces, such as `rewarm vocab train` writes"
    extend.add_argument("--add", type=path_text, required=True, metavar="TOKENIZER", help=new)
    extend.add_argument("--out", type=path_text, required=True, metavar="DIR", help="the extended tokenizer")
    add_overwrite(extend)
    most = "add at most so many pieces (default: all that may be added)"
    extend.add_argument("--max-pieces", type=positive_number, metavar="N", help=most)
    scripts = "add only pieces of these Unicode scripts (default: han)"
    extend.add_argument("--allow-scripts", nargs="+", default=["han"], metavar="SCRIPT", help=scripts)

    report = add_command(
        kinds, "report", report_vocabulary_command, "--tokenizer llama2-zh --text held-out.txt"
    )
    report.add_argument(
        "--tokenizer", type=path_text, required=True, metavar="DIR", help="the tokenizer to examine"
    )
    report.add_argument(
        "--against", type=path_text, metavar="DIR", help="the base, whose ids must not have changed"
    )
    add_text(report, "--text", required=True)


def train_vocabulary_command(args: argparse.Namespace) -> int:
    """Train a SentencePiece BPE vocabulary from text."""
    from tokenization.vocabulary.train import train_vocabulary

    result = train_vocabulary(
        args.input,
        args.size,
        args.out,
        text_field=args.text_field,
        encoding=args.encoding,
        max_rejects=args.max_rejects,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def extend_vocabulary_command(args: argparse.Namespace) -> int:
    """Add new pieces to a base vocabulary."""
    from tokenization.vocabulary.extend import extend_vocabulary

    result = extend_vocabulary(
        args.base,
        args.add,
        args.out,
        max_pieces=args.max_pieces,
        allow_scripts=args.allow_scripts,
        overwrite=args.overwrite,
    )
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def report_vocabulary_command(args: argparse.Namespace) -> int:
    """Measure what a vocabulary does to text; exit code 1 if it breaks a guarantee."""
    from tokenization.vocabulary.report import report_vocabulary

    result = report_vocabulary(
        args.tokenizer,
        args.text,
        against=args.against,
        text_field=args.text_field,
        encoding=args.encoding,
    )
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.FAILED if result.broken else ExitCode.DONE
