"""`rewarm data`: text to token shards, and what a mixture draws from them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

from tokenization.errors import ExitCode, UserError
from tokenization.tables import text_table
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, add_noun, add_recipe, fraction, part_of
from trainer.recipe import load
from trainer.recipe.numbers import count


def add_data(commands: Any) -> None:
    """Add `data` and its commands."""
    kinds = add_noun(commands, "data", "text to token shards, and what a mixture draws from them")
    _add_prepare(kinds)
    inspect = add_command(
        kinds, "inspect", inspect_command, "verify a shard and show what it holds", "data/zh"
    )
    inspect.add_argument("prefix")
    simulate = add_command(
        kinds,
        "simulate",
        simulate_command,
        "list the samples that a recipe draws",
        "recipe.yaml --samples 0:100",
    )
    add_recipe(simulate)
    simulate.add_argument("--samples", default="0:20", metavar="A:B", help="window of the run's samples")
    simulate.add_argument("--shares", action="store_true", help="only show how much each source contributes")


def _add_prepare(kinds: Any) -> None:
    prepare = add_command(
        kinds,
        "prepare",
        prepare_command,
        "turn text into token shards",
        "--input zh/ --tokenizer llama2-zh --out data/zh",
    )
    prepare.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files or folders of text")
    prepare.add_argument("--tokenizer", required=True)
    prepare.add_argument("--out", required=True, metavar="PREFIX")
    prepare.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="number of processes (default: one per core)"
    )
    prepare.add_argument(
        "--part", type=part_of, metavar="I/N", help="only the I-th of N parts, for job arrays"
    )
    prepare.add_argument("--text-field", default="text", help="field of jsonl and parquet records")
    prepare.add_argument(
        "--documents",
        choices=("file", "blocks", "lines"),
        default="file",
        help="what a document is in a .txt file (default: the file)",
    )
    prepare.add_argument(
        "--validation",
        type=fraction,
        default=0,
        metavar="SHARE",
        help="share of the documents to hold out, chosen by their hash, such as 0.5%%",
    )
    prepare.add_argument("--deduplicate", action="store_true", help="drop exact copies of documents")
    prepare.add_argument(
        "--max-rejects",
        type=int,
        default=1000,
        help="malformed records tolerated before the job stops (default: 1000)",
    )
    prepare.add_argument(
        "--engine", metavar="NAME", help="use only this encoder (it must still reproduce the reference ids)"
    )
    prepare.add_argument("--overwrite", action="store_true", help="replace what another job wrote at --out")


def prepare_command(args: argparse.Namespace) -> int:
    """`rewarm data prepare`."""
    from tokenization.prepare.prepare import prepare

    result = prepare(
        args.input,
        args.tokenizer,
        args.out,
        text_field=args.text_field,
        txt=args.documents,
        workers=args.workers,
        part=args.part,
        validation=args.validation,
        dedup=args.deduplicate,
        max_rejects=args.max_rejects,
        engine=args.engine,
        overwrite=args.overwrite,
    )
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def inspect_command(args: argparse.Namespace) -> int:
    """`rewarm data inspect`: every byte of the shards is read and compared with their checksums."""
    from tokenization.shards.store import inspect_shard, verify_shard

    verify_shard(args.prefix)
    result = inspect_shard(args.prefix)
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def simulate_command(args: argparse.Namespace) -> int:
    """`rewarm data simulate`: a window of the run's samples, without a model."""
    from trainer.mixer import simulate
    from trainer.mixer.mixture import Mixture, SourceSize
    from trainer.plan.data import open_sources

    recipe = load.load_recipe(args.recipe, args.overrides)
    sizes = {name: SourceSize.of(store, recipe.seq_len) for name, store in open_sources(recipe).items()}
    mixture = Mixture.from_recipe(recipe, sizes)
    try:
        start, stop = (count(part) for part in args.samples.split(":"))
    except ValueError as error:
        raise UserError(
            "is not a window A:B", field="--samples", value=args.samples, fix="give two whole numbers"
        ) from error
    for row in () if args.shares else simulate.sample_rows(mixture, start, stop):
        line = dataclasses.asdict(row)
        print(json.dumps(line) if args.json else "\t".join(str(value) for value in line.values()))
    if args.json and not args.shares:
        return ExitCode.DONE  # every line is a sample
    shares = simulate.source_shares(mixture, start, stop)
    rows = [
        (
            share.source,
            f"{share.samples:,}",
            f"{share.share:.6f}",
            f"{float(share.target):.6f}",
            f"{share.off_by:+.3f}",
            f"{share.coverage:.4%}",
        )
        for share in shares
    ]
    table = text_table(("source", "samples", "share", "target", "off by", "coverage"), rows, "<>>>>>")
    print_answer(args, {"shares": [dataclasses.asdict(share) for share in shares]}, table)
    return ExitCode.DONE
