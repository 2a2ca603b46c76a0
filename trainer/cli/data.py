"""`rewarm data`: text to token shards, and what a mixture draws from them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenization.errors import ExitCode, UserError
from tokenization.tables import text_table
from trainer.cli.answer import print_answer
from trainer.cli.arguments import (
    add_command,
    add_noun,
    add_recipe,
    add_rejects,
    add_text,
    fraction,
    part_of,
    path_text,
    positive_number,
    prefix_text,
    temperature,
    whole_number,
)
from trainer.recipe import load
from trainer.recipe.numbers import count

_PREFIX = "the new shards: files PREFIX.bin, PREFIX.idx and PREFIX.json, or such for each part"
_SHARDS = "shards as `rewarm data prepare` writes them: the path of the files without .bin"


def add_data(commands: Any) -> None:
    """Add `data` and its commands."""
    kinds = add_noun(commands, "data", "text to token shards, and what a mixture draws from them")
    prepare = add_command(
        kinds, "prepare", prepare_command, "--input zh/ --tokenizer llama2-zh --out data/zh"
    )
    inputs = "files or folders of text; hf://NAME[/CONFIG][:SPLIT] streams a dataset of the hub"
    add_text(prepare, "--input", required=True, help=inputs)
    tokenizer = "the tokenizer that the model is trained with: directory, or SentencePiece .model file"
    prepare.add_argument("--tokenizer", type=path_text, required=True, metavar="TOKENIZER", help=tokenizer)
    prepare.add_argument("--out", type=prefix_text, required=True, metavar="PREFIX", help=_PREFIX)
    workers = "number of processes (default: one per CPU that this process may use)"
    prepare.add_argument("--workers", type=whole_number, metavar="N", help=workers)
    prepare.add_argument(
        "--part", type=part_of, metavar="I/N", help="only the I-th of N parts, for job arrays"
    )
    documents = "what a document is in a .txt file (default: the file)"
    prepare.add_argument("--documents", choices=("file", "blocks", "lines"), default="file", help=documents)
    held_out = (
        "share of the documents to hold out in PREFIX-validation, chosen by their hash, such as 0.5%% "
        "(default: none)"
    )
    prepare.add_argument("--validation", type=fraction, default=0, metavar="SHARE", help=held_out)
    clean = (
        "write the held-out documents that are not trained on, not even in part, to PREFIX-validation-clean"
    )
    prepare.add_argument("--clean-validation", action="store_true", help=clean)
    prepare.add_argument("--deduplicate", action="store_true", help="drop exact copies of documents")
    add_rejects(prepare)
    engine = "use only this encoder, which must still give the reference ids (default: the fastest that does)"
    prepare.add_argument("--engine", metavar="NAME", help=engine)
    prepare.add_argument("--overwrite", action="store_true", help="replace what another job wrote at --out")

    _add_generate(kinds)

    _add_shard_checks(kinds)

    inspect = add_command(kinds, "inspect", inspect_command, "data/zh")
    inspect.add_argument("prefix", type=prefix_text, metavar="PREFIX", help=_SHARDS)

    example = "data/zh --sample 17 --seq-len 4096 --tokenizer llama2-zh"
    show = add_command(kinds, "show", show_command, example)
    show.add_argument("prefix", type=prefix_text, metavar="PREFIX", help=_SHARDS)
    sample = "number of the sample, from 0"
    show.add_argument("--sample", type=whole_number, required=True, metavar="N", help=sample)
    length = "tokens of a sample, as in the recipe"
    show.add_argument("--seq-len", type=positive_number, required=True, metavar="N", help=length)
    made = "the one that made the shards"
    show.add_argument("--tokenizer", type=path_text, required=True, metavar="TOKENIZER", help=made)

    simulate = add_command(kinds, "simulate", simulate_command, "recipe.yaml --samples 0:100")
    add_recipe(simulate)
    window = "the run's samples from number A up to B, which is left out (default: 0:20)"
    simulate.add_argument("--samples", default="0:20", metavar="A:B", help=window)
    log = "follow a run's decisions.jsonl, for a mixture with a forgetting budget"
    simulate.add_argument("--decisions", type=path_text, metavar="FILE", help=log)
    simulate.add_argument("--shares", action="store_true", help="only show how much each source contributes")


def _add_shard_checks(kinds: Any) -> None:
    """Add what looks at shards that are there already."""
    adopt = add_command(kinds, "adopt", adopt_command, "data/zh_text_document --tokenizer llama2-zh")
    shard = "a shard of Megatron-LM or gpt-neox: the path of its .bin file without .bin"
    adopt.add_argument("prefix", type=prefix_text, metavar="PREFIX", help=shard)
    made = "the one that made it"
    adopt.add_argument("--tokenizer", type=path_text, required=True, metavar="TOKENIZER", help=made)

    example = "--train data/zh data/en --validation data/zh-validation"
    overlap = add_command(kinds, "overlap", overlap_command, example)
    for flag, shards in (("--train", "shards of the training text"), ("--validation", "shards held out")):
        overlap.add_argument(flag, type=prefix_text, nargs="+", required=True, metavar="PREFIX", help=shards)
    least = "likeness from which on a document counts as trained on (default: 50%%)"
    overlap.add_argument("--least", type=fraction, default="50%", metavar="SHARE", help=least)
    workers = "number of processes (default: one per CPU)"
    overlap.add_argument("--workers", type=positive_number, metavar="N", help=workers)
    write = "write each set without those documents to PREFIX-clean"
    overlap.add_argument("--write-clean", action="store_true", help=write)
    made = "the one that made the shards; needed for --write-clean"
    overlap.add_argument("--tokenizer", type=path_text, metavar="TOKENIZER", help=made)
    overlap.add_argument("--overwrite", action="store_true", help="replace what is at PREFIX-clean")


def _add_generate(kinds: Any) -> None:
    example = "--model models/llama2-7b-zh --tokens 1e9 --out data/own-replay"
    generate = add_command(kinds, "generate", generate_command, example)
    base = "the model that the run will start from: directory or hub id"
    generate.add_argument("--model", type=path_text, required=True, metavar="BASE", help=base)
    generate.add_argument(
        "--tokens", type=positive_number, required=True, metavar="N", help="draw at least so many tokens"
    )
    generate.add_argument("--out", type=prefix_text, required=True, metavar="PREFIX", help=_PREFIX)
    scale = "temperature of the logits (default: 1, the model's own distribution)"
    generate.add_argument("--temperature", type=temperature, default=1.0, metavar="T", help=scale)
    seed = "seed of the draws (default: 0)"
    generate.add_argument("--seed", type=whole_number, default=0, metavar="N", help=seed)
    documents = "documents that a rank draws at a time (default: 32)"
    generate.add_argument("--batch", type=positive_number, default=32, metavar="N", help=documents)
    longest = "tokens after which a document is cut (default: 2048, or the model's context if it is shorter)"
    generate.add_argument("--longest", type=positive_number, metavar="N", help=longest)
    ranks = "number of ranks (default: one per GPU, or 1); under a launcher its own number"
    generate.add_argument("--nproc", type=positive_number, metavar="N", help=ranks)


def prepare_command(args: argparse.Namespace) -> int:
    """Turn text into token shards."""
    from tokenization.prepare.cpus import allowed_cpus
    from tokenization.prepare.prepare import prepare

    result = prepare(
        args.input,
        args.tokenizer,
        args.out,
        text_field=args.text_field,
        txt=args.documents,
        encoding=args.encoding,
        workers=allowed_cpus() if args.workers is None else args.workers,
        part=args.part,
        validation=args.validation,
        clean=args.clean_validation,
        dedup=args.deduplicate,
        max_rejects=args.max_rejects,
        engine=args.engine,
        overwrite=args.overwrite,
    )
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def generate_command(args: argparse.Namespace) -> int:
    """Write a corpus to replay, drawn from the base itself; the same command goes on after a kill."""
    from pathlib import Path

    from trainer.machine.devices import count_devices
    from trainer.machine.ranks import current_world
    from trainer.machine.signals import Signals
    from trainer.model.generate import write_corpus

    ranks = args.nproc or count_devices()
    alone = ranks == 1 or current_world().world_size > 1  # else the ranks that are started hear the signals
    with Signals(unsaved=False) if alone else contextlib.nullcontext():
        meta, status = write_corpus(
            args.model,
            Path(args.out),
            args.tokens,
            ranks,
            temperature=args.temperature,
            seed=args.seed,
            batch=args.batch,
            longest=args.longest,
        )
    if meta is not None:
        told = dict(meta.generated or {})
        text = f"{args.out}: {meta.tokens:,} tokens in {meta.documents:,} documents of {args.model}"
        counts = ", ".join(f"{name} {count:,}" for name, count in told.get("documents", {}).items())
        print_answer(args, dataclasses.asdict(meta), f"{text}\ndocuments: {counts}")
    return status


def adopt_command(args: argparse.Namespace) -> int:
    """Use a shard of Megatron-LM or gpt-neox as it is: check it, and write the side file that it lacks."""
    from tokenization.shards.adopt import adopt_shard

    result = adopt_shard(args.prefix, args.tokenizer)
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def overlap_command(args: argparse.Namespace) -> int:
    """Find validation documents that are trained on: copies, near copies, and runs of 13 tokens."""
    from tokenization.prepare.clean import write_clean
    from tokenization.prepare.cpus import allowed_cpus
    from tokenization.prepare.overlap import find_overlap
    from tokenization.tokenizer.files import open_tokenizer

    if not 0 < args.least <= 1:
        what, fix = "is not a share above 0 and up to 100%", "write it like 50%"
        raise UserError(what, field="--least", value=str(args.least), fix=fix)
    if args.write_clean and args.tokenizer is None:
        fix = "give the tokenizer that made the shards"
        raise UserError("is needed for --write-clean", field="--tokenizer", fix=fix)
    tokenizer = open_tokenizer(args.tokenizer) if args.write_clean else None
    workers = args.workers or allowed_cpus()
    found = find_overlap(args.train, args.validation, workers=workers, least=float(args.least))
    lines = [overlap.to_text() for overlap in found]
    if tokenizer is not None:
        for overlap in found:
            out = write_clean(overlap, tokenizer, overwrite=args.overwrite)
            lines.append(
                f"{out}: {overlap.documents - len(overlap.found):,} documents that are not trained on"
            )
    print_answer(args, [overlap.to_json() for overlap in found], "\n".join(lines))
    return ExitCode.DONE


def inspect_command(args: argparse.Namespace) -> int:
    """Verify every byte of a shard by its checksums, and show what it holds."""
    from tokenization.shards.store import inspect_shard, verify_shard

    verify_shard(args.prefix)
    result = inspect_shard(args.prefix)
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def show_command(args: argparse.Namespace) -> int:
    """Show the text of one sample of a shard, and the documents that it is of."""
    from tokenization.shards.show import show_sample

    result = show_sample(args.prefix, args.sample, args.seq_len, args.tokenizer)
    print_answer(args, result.to_json(), result.to_text())
    return ExitCode.DONE


def simulate_command(args: argparse.Namespace) -> int:
    """List the samples that a recipe draws, without a model."""
    from trainer.mixer import simulate
    from trainer.mixer.decisions import changes_of, read_decisions
    from trainer.mixer.mixture import Mixture, SourceSize
    from trainer.plan.data import open_sources

    recipe = load.load_recipe(args.recipe, args.overrides)
    sizes = {name: SourceSize.of(store, recipe.seq_len) for name, store in open_sources(recipe).items()}
    decided = changes_of(read_decisions(Path(args.decisions))) if args.decisions else []
    mixture = Mixture.from_recipe(recipe, sizes, changes=decided)
    try:
        start, stop = (count(part) for part in args.samples.split(":"))
    except ValueError as error:
        fix = "give two whole numbers, such as 0:100"
        raise UserError("is not a window A:B", field="--samples", value=args.samples, fix=fix) from error
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
