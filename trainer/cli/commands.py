"""What each command of `rewarm` does: calls a lower room, and says what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenization.errors import UserError
from trainer.machine.ranks import current_world, note_status, wait_for_rank0
from trainer.recipe import load
from trainer.recipe.numbers import count

_BEGINNING = 100_000
"""Characters of a text that losses are compared on."""


def answer(args: argparse.Namespace, data: Any, text: str) -> None:
    """The answer as JSON or as text, on standard output."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        data = dataclasses.asdict(data)
    # Where standard output cannot show all characters, JSON's own escapes keep it JSON.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(data, ensure_ascii=not unicode, default=str) if args.json else text)


def train_command(args: argparse.Namespace) -> int:
    """`rewarm train`: everything that can fail cheaply fails before the ranks are joined."""
    from trainer.machine.signals import exit_on_signal
    from trainer.plan.make import make_plan

    exit_on_signal()
    world = current_world()
    plan = make_plan(load.load_recipe(args.recipe, args.overrides), world.world_size)
    if world.rank == 0:
        for line in [*plan.broken, *plan.notes, *plan.decision.render().splitlines()]:
            print(f"rewarm: {line}", file=sys.stderr, flush=True)
    if plan.decision.kind == "refuse":
        note_status(UserError.exit_code)
        wait_for_rank0(world.rank, UserError.exit_code)
        return UserError.exit_code
    from trainer.run.start import start

    return start(plan, world)


def plan_command(args: argparse.Namespace) -> int:
    """`rewarm plan`: the run before the run."""
    from trainer.plan import render
    from trainer.plan.make import make_plan

    found = make_plan(load.load_recipe(args.recipe, args.overrides), args.world_size)
    answer(args, render.plan_to_json(found, args.lr_at), render.render_plan(found, args.lr_at))
    return UserError.exit_code if found.decision.kind == "refuse" else 0


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
        raise UserError("is no window", field="--samples", value=args.samples, fix="give A:B") from error
    for row in () if args.shares else simulate.sample_rows(mixture, start, stop):
        line = dataclasses.asdict(row)
        print(json.dumps(line) if args.json else "\t".join(str(value) for value in line.values()))
    if args.json and not args.shares:
        return 0  # every line is a sample
    shares = simulate.source_shares(mixture, start, stop)
    table = ["source\tsamples\tshare\ttarget\toff by\tcoverage"] + [
        f"{share.source}\t{share.samples}\t{share.share:.6f}\t{float(share.target):.6f}\t"
        f"{share.off_by:+.3f}\t{share.coverage:.4%}"
        for share in shares
    ]
    answer(args, {"shares": [dataclasses.asdict(share) for share in shares]}, "\n".join(table))
    return 0


def train_vocabulary_command(args: argparse.Namespace) -> int:
    """`rewarm vocab train`."""
    from tokenization.vocabulary import train

    told = train.train_vocabulary(
        args.input,
        args.size,
        args.out,
        text_field=args.text_field,
        encoding=args.encoding,
        max_rejects=args.max_rejects,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    answer(args, told.to_json(), told.to_text())
    return 0


def extend_vocabulary_command(args: argparse.Namespace) -> int:
    """`rewarm vocab extend`."""
    from tokenization.vocabulary.extend import extend_vocabulary

    told = extend_vocabulary(
        args.base,
        args.add,
        args.out,
        max_pieces=args.max_pieces,
        allow_scripts=args.allow_scripts,
        overwrite=args.overwrite,
    )
    answer(args, told.to_json(), told.to_text())
    return 0


def report_vocabulary_command(args: argparse.Namespace) -> int:
    """`rewarm vocab report`: 1 when a guarantee is broken."""
    from tokenization.vocabulary import report

    told = report.report_vocabulary(
        args.tokenizer,
        args.text,
        against=args.against,
        text_field=args.text_field,
        encoding=args.encoding,
    )
    answer(args, told.to_json(), told.to_text())
    return 1 if told.broken else 0


def prepare_data_command(args: argparse.Namespace) -> int:
    """`rewarm data prepare`."""
    from tokenization.prepare.cpus import allowed_cpus
    from tokenization.prepare.prepare import prepare

    told = prepare(
        args.input,
        args.tokenizer,
        args.out,
        text_field=args.text_field,
        txt=args.documents,
        encoding=args.encoding,
        workers=allowed_cpus() if args.workers is None else args.workers,
        part=args.part,
        validation=args.validation,
        dedup=args.deduplicate,
        max_rejects=args.max_rejects,
        engine=args.engine,
        overwrite=args.overwrite,
    )
    answer(args, told.to_json(), told.to_text())
    return 0


def inspect_data_command(args: argparse.Namespace) -> int:
    """`rewarm data inspect`: reads every byte of the shards and holds it against their checksums."""
    from tokenization.shards.store import inspect_shard, verify_shard

    verify_shard(args.prefix)
    told = inspect_shard(args.prefix)
    answer(args, told.to_json(), told.to_text())
    return 0


def extend_model_command(args: argparse.Namespace) -> int:
    """`rewarm model extend`: grown embeddings, and what that did to the loss."""
    from tokenization.disk import refuse_existing
    from trainer.model.extend import bits_per_byte, encoder, extend_model
    from trainer.storage.hub import local_directory

    refuse_existing(args.out, overwrite=args.overwrite)
    base = local_directory(args.base, field="--base")
    texts, notes = _beginnings(args.text, args.text_field, args.encoding)
    if texts:
        encoder(base)  # which could not be had otherwise until all is written
    extension = extend_model(base, args.tokenizer, args.out, args.new_rows, args.seed, args.overwrite)
    added = extension.pieces - extension.base_pieces
    lines = [
        f"{args.out}: {extension.base_pieces:,} + {added:,} pieces in {extension.rows:,} rows; a new piece "
        f"was {extension.mean_split:.2f} base tokens on average",
        *extension.lines,
    ]
    losses = {}
    for path, text in texts.items():
        losses[path] = {
            name: bits_per_byte(model, text) for name, model in (("before", base), ("after", args.out))
        }
        lines.append("{}: {before:.4f} bits/byte before, {after:.4f} after".format(path, **losses[path]))
    told = {"rows": extension.rows, "pieces": extension.pieces, "bits_per_byte": losses}
    answer(
        args,
        {**told, "notes": list(extension.lines), "left_out": notes},
        "\n".join([*lines, *notes]),
    )
    return 0


def _beginnings(paths: Sequence[str], text_field: str, encoding: str) -> tuple[dict[str, str], list[str]]:
    """The first documents of each file or folder, and lines on what is left out of them.

    Raises:
        UserError: one has no text.
    """
    from tokenization.text import documents
    from tokenization.text.streams import check_encoding
    from tokenization.text.texts import Texts

    format = documents.DocumentFormat(text_field, "lines", check_encoding(encoding))
    beginnings, notes = {}, []
    for path in paths:
        texts = Texts([path], format)
        found, size = [], 0
        for file in texts.files:
            for text in texts.read(file):
                found.append(text)
                size += len(text)
                if size >= _BEGINNING:
                    break
            if size >= _BEGINNING:
                break
        if not found:
            why = "; ".join(["has no text", *texts.notes()])
            raise UserError(why, field="--text", value=path, fix="is --text-field right?")
        beginnings[path] = "\n".join(found)[:_BEGINNING]
        notes += [f"{path}: {note}" for note in texts.notes()]
    return beginnings, notes


def export_command(args: argparse.Namespace) -> int:
    """`rewarm export`: a checkpoint as a Hugging Face model directory."""
    from trainer.checkpoint.export import export_checkpoint
    from trainer.checkpoint.history import find_checkpoint

    checkpoint = find_checkpoint(Path(args.checkpoint))
    lines = export_checkpoint(checkpoint, Path(args.out), args.dtype, args.shard_size, args.overwrite)
    told = {"checkpoint": str(checkpoint.path), "out": args.out, "dtype": args.dtype, "notes": lines}
    answer(args, told, "\n".join([f"{args.out}: {checkpoint.path.name} in {args.dtype}", *lines]))
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """`rewarm eval`: nats per token and bits per byte of a model or checkpoint on token shards."""
    from trainer.evaluation.offline import score_model

    def say(line: str) -> None:
        print(f"rewarm: {line}", file=sys.stderr, flush=True)

    scores = score_model(args.model, args.data, args.seq_len, args.max_tokens, say)
    rows = {
        prefix: {"bits_per_byte": s.bits_per_byte, "nats_per_token": s.nats_per_token, "tokens": s.tokens}
        for prefix, s in scores.items()
    }
    lines = [
        f"{prefix}: {row['bits_per_byte']:.4f} bits/byte, {row['nats_per_token']:.4f} nats/token, "
        f"{row['tokens']:,} tokens"
        for prefix, row in rows.items()
    ]
    answer(args, rows, "\n".join(lines))
    return 0


def report_command(args: argparse.Namespace) -> int:
    """`rewarm report`: one HTML page about runs, and their table."""
    from trainer.report.page import runs_table, write_report

    runs = [Path(run) for run in args.runs]
    write_report(runs, Path(args.out))
    answer(args, {"out": args.out}, f"{runs_table(runs)}\n\n{args.out}")
    return 0


def study_command(args: argparse.Namespace) -> int:
    """`rewarm study`: a paper's experiment with the user's recipe and data."""
    from trainer.machine.devices import count_devices
    from trainer.study import series

    out, world_size = Path(args.out), args.nproc or count_devices()
    trials = series.plan_arms(args.name, args.recipe, out, args.overrides, world_size)
    arms = series.write_arms(trials, out)
    told = {"arms": str(arms), "runs": [str(trial.directory) for trial in trials]}
    if args.arms_only:
        submit = f"sbatch --array=1-{len(trials)} launch/slurm/study.sbatch {args.recipe} {arms}"
        answer(args, told, f"{arms}: {len(trials)} arms\n{submit}")
        return 0

    def say(line: str) -> None:
        print(f"rewarm: {line}", file=sys.stderr, flush=True)

    if status := series.train_arms(trials, args.recipe, world_size, say):
        return status
    page = out / "report.html"
    answer(args, {**told, "report": str(page)}, f"{series.conclude(args.name, trials, out)}\n\n{page}")
    return 0
