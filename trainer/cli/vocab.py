"""`rewarm vocab`: train, extend and examine vocabularies."""

from __future__ import annotations

import argparse
from typing import Any

from tokenization.errors import ExitCode
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, add_noun


def add_vocab(commands: Any) -> None:
    """Add `vocab` and its commands."""
    kinds = add_noun(commands, "vocab", "train, extend and examine vocabularies")
    train = add_command(
        kinds,
        "train",
        train_command,
        "train a SentencePiece BPE vocabulary from text",
        "--input zh.jsonl --size 8000 --out zh",
    )
    train.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files or folders of text")
    train.add_argument("--size", type=int, required=True, help="number of pieces")
    train.add_argument("--out", required=True, metavar="DIR")
    train.add_argument("--text-field", default="text", help="field of jsonl and parquet records")
    train.add_argument("--seed", type=int, default=0)

    extend = add_command(
        kinds,
        "extend",
        extend_command,
        "add new pieces to a base vocabulary",
        "--base llama2 --add zh --out llama2-zh",
    )
    extend.add_argument("--base", required=True, metavar="TOKENIZER")
    extend.add_argument("--add", required=True, metavar="TOKENIZER")
    extend.add_argument("--out", required=True, metavar="DIR")
    extend.add_argument("--max-pieces", type=int, help="add at most this many pieces")
    extend.add_argument(
        "--allow-scripts",
        nargs="+",
        default=["han"],
        help="add only pieces of these Unicode scripts (default: han)",
    )

    report = add_command(
        kinds,
        "report",
        report_command,
        "measure what a vocabulary does to text, and check its guarantees",
        "--tokenizer llama2-zh --text held-out.txt",
    )
    report.add_argument("--tokenizer", required=True, metavar="DIR")
    report.add_argument("--against", metavar="DIR", help="the base, whose ids must not have changed")
    report.add_argument("--text", nargs="+", required=True, metavar="PATH")
    report.add_argument("--text-field", default="text", help="field of jsonl and parquet records")


def train_command(args: argparse.Namespace) -> int:
    """`rewarm vocab train`."""
    from tokenization.vocabulary.train import train_vocabulary

    result = train_vocabulary(args.input, args.size, args.out, text_field=args.text_field, seed=args.seed)
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def extend_command(args: argparse.Namespace) -> int:
    """`rewarm vocab extend`."""
    from tokenization.vocabulary.extend import extend_vocabulary

    result = extend_vocabulary(
        args.base, args.add, args.out, max_pieces=args.max_pieces, allow_scripts=args.allow_scripts
    )
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def report_command(args: argparse.Namespace) -> int:
    """`rewarm vocab report`; fails if a guarantee is broken."""
    from tokenization.vocabulary.report import report_vocabulary

    result = report_vocabulary(args.tokenizer, args.text, against=args.against, text_field=args.text_field)
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.FAILED if result.broken else ExitCode.DONE
