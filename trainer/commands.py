"""What each command of `rewarm` does: calls a lower room, and says what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import recipe as recipes
from trainer.errors import UserError
from trainer.launcher import note_status, wait_for_rank0, world
from trainer.numbers import count

_BEGINNING = 100_000
"""Characters of a text that losses are compared on."""


def answer(asked: argparse.Namespace, data: Any, text: str) -> None:
    """The answer as JSON or as text, on standard output."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        data = dataclasses.asdict(data)
    # Where standard output cannot show all characters, JSON's own escapes keep it JSON.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(data, ensure_ascii=not unicode, default=str) if asked.json else text)


def train(asked: argparse.Namespace) -> int:
    """`rewarm train`: everything that can fail cheaply fails before the ranks are joined."""
    from trainer.health import stop_at_once
    from trainer.plan import prepare

    stop_at_once()
    here = world()
    plan = prepare(recipes.load(asked.recipe, asked.overrides), here.world_size)
    if here.rank == 0:
        for line in [*plan.broken, *plan.notes, *plan.decision.render().splitlines()]:
            print(f"rewarm: {line}", file=sys.stderr, flush=True)
    if plan.decision.kind == "refuse":
        note_status(UserError.exit_code)
        wait_for_rank0(here.rank, UserError.exit_code)
        return UserError.exit_code
    from trainer.run import run

    return run(plan, here)


def plan(asked: argparse.Namespace) -> int:
    """`rewarm plan`: the run before the run."""
    import trainer.preview as preview
    from trainer.plan import prepare

    found = prepare(recipes.load(asked.recipe, asked.overrides), asked.world_size)
    answer(asked, preview.to_json(found, asked.lr_at), preview.render(found, asked.lr_at))
    return UserError.exit_code if found.decision.kind == "refuse" else 0


def simulate(asked: argparse.Namespace) -> int:
    """`rewarm data simulate`: a window of the run's samples, without a model."""
    from trainer.mixer import simulate as simulation
    from trainer.mixer.mixture import Mixture, SourceSize
    from trainer.mixer.sources import open_sources

    recipe = recipes.load(asked.recipe, asked.overrides)
    sizes = {name: SourceSize.of(store, recipe.seq_len) for name, store in open_sources(recipe).items()}
    mixture = Mixture.from_recipe(recipe, sizes)
    try:
        start, stop = (count(part) for part in asked.samples.split(":"))
    except ValueError as error:
        raise UserError("is no window", field="--samples", value=asked.samples, mend="give A:B") from error
    for row in () if asked.shares else simulation.rows(mixture, start, stop):
        line = dataclasses.asdict(row)
        print(json.dumps(line) if asked.json else "\t".join(str(value) for value in line.values()))
    if asked.json and not asked.shares:
        return 0  # every line is a sample
    shares = simulation.shares(mixture, start, stop)
    table = ["source\tsamples\tshare\ttarget\toff by\tcoverage"] + [
        f"{share.source}\t{share.samples}\t{share.share:.6f}\t{float(share.target):.6f}\t"
        f"{share.off_by:+.3f}\t{share.coverage:.4%}"
        for share in shares
    ]
    answer(asked, {"shares": [dataclasses.asdict(share) for share in shares]}, "\n".join(table))
    return 0


def train_vocabulary(asked: argparse.Namespace) -> int:
    """`rewarm vocab train`."""
    from tokenization import vocabulary

    told = vocabulary.train(
        asked.input,
        asked.size,
        asked.out,
        text_field=asked.text_field,
        encoding=asked.encoding,
        max_rejects=asked.max_rejects,
        seed=asked.seed,
        overwrite=asked.overwrite,
    )
    answer(asked, told.to_json(), told.to_text())
    return 0


def extend_vocabulary(asked: argparse.Namespace) -> int:
    """`rewarm vocab extend`."""
    from tokenization import vocabulary

    told = vocabulary.extend(
        asked.base,
        asked.add,
        asked.out,
        max_pieces=asked.max_pieces,
        allow_scripts=asked.allow_scripts,
        overwrite=asked.overwrite,
    )
    answer(asked, told.to_json(), told.to_text())
    return 0


def report_vocabulary(asked: argparse.Namespace) -> int:
    """`rewarm vocab report`: 1 when a guarantee is broken."""
    from tokenization import vocabulary

    told = vocabulary.report(
        asked.tokenizer,
        asked.text,
        against=asked.against,
        text_field=asked.text_field,
        encoding=asked.encoding,
    )
    answer(asked, told.to_json(), told.to_text())
    return 1 if told.broken else 0


def prepare_data(asked: argparse.Namespace) -> int:
    """`rewarm data prepare`."""
    from tokenization.cpus import allowed_cpus
    from tokenization.prepare import prepare

    told = prepare(
        asked.input,
        asked.tokenizer,
        asked.out,
        text_field=asked.text_field,
        txt=asked.documents,
        encoding=asked.encoding,
        workers=allowed_cpus() if asked.workers is None else asked.workers,
        part=asked.part,
        validation=asked.validation,
        dedup=asked.deduplicate,
        max_rejects=asked.max_rejects,
        engine=asked.engine,
        overwrite=asked.overwrite,
    )
    answer(asked, told.to_json(), told.to_text())
    return 0


def inspect_data(asked: argparse.Namespace) -> int:
    """`rewarm data inspect`: reads every byte of the shards and holds it against their checksums."""
    from tokenization import shards

    shards.verify(asked.prefix)
    told = shards.inspect(asked.prefix)
    answer(asked, told.to_json(), told.to_text())
    return 0


def extend_model(asked: argparse.Namespace) -> int:
    """`rewarm model extend`: grown embeddings, and what that did to the loss."""
    from tokenization.directories import refuse_existing
    from trainer.model.directory import local
    from trainer.model.extend import bits_per_byte, encoder, extend

    refuse_existing(asked.out, overwrite=asked.overwrite)
    base = local(asked.base, field="--base")
    texts, notes = _beginnings(asked.text, asked.text_field, asked.encoding)
    if texts:
        encoder(base)  # which could not be had otherwise until all is written
    extension = extend(base, asked.tokenizer, asked.out, asked.new_rows, asked.seed, asked.overwrite)
    added = extension.pieces - extension.base_pieces
    lines = [
        f"{asked.out}: {extension.base_pieces:,} + {added:,} pieces in {extension.rows:,} rows; a new piece "
        f"was {extension.mean_split:.2f} base tokens on average",
        *extension.lines,
    ]
    losses = {}
    for path, text in texts.items():
        losses[path] = {
            name: bits_per_byte(model, text) for name, model in (("before", base), ("after", asked.out))
        }
        lines.append("{}: {before:.4f} bits/byte before, {after:.4f} after".format(path, **losses[path]))
    told = {"rows": extension.rows, "pieces": extension.pieces, "bits_per_byte": losses}
    answer(
        asked,
        {**told, "notes": list(extension.lines), "left_out": notes},
        "\n".join([*lines, *notes]),
    )
    return 0


def _beginnings(paths: Sequence[str], text_field: str, encoding: str) -> tuple[dict[str, str], list[str]]:
    """The first documents of each file or folder, and lines on what is left out of them.

    Raises:
        UserError: one has no text.
    """
    from tokenization import documents
    from tokenization.streams import check_encoding
    from tokenization.texts import Texts

    format = documents.Format(text_field, "lines", check_encoding(encoding))
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
            raise UserError(why, field="--text", value=path, mend="is --text-field right?")
        beginnings[path] = "\n".join(found)[:_BEGINNING]
        notes += [f"{path}: {note}" for note in texts.notes()]
    return beginnings, notes


def export(asked: argparse.Namespace) -> int:
    """`rewarm export`: a checkpoint as a Hugging Face model directory."""
    from trainer.checkpoint.take import export_checkpoint, find

    checkpoint = find(Path(asked.checkpoint))
    lines = export_checkpoint(checkpoint, Path(asked.out), asked.dtype, asked.shard_size, asked.overwrite)
    told = {"checkpoint": str(checkpoint.path), "out": asked.out, "dtype": asked.dtype, "notes": lines}
    answer(asked, told, "\n".join([f"{asked.out}: {checkpoint.path.name} in {asked.dtype}", *lines]))
    return 0


def evaluate(asked: argparse.Namespace) -> int:
    """`rewarm eval`: nats per token and bits per byte of a model or checkpoint on token shards."""
    from trainer.score import score_model

    def say(line: str) -> None:
        print(f"rewarm: {line}", file=sys.stderr, flush=True)

    scores = score_model(asked.model, asked.data, asked.seq_len, asked.max_tokens, say)
    rows = {
        prefix: {"bits_per_byte": s.bits_per_byte, "nats_per_token": s.nats_per_token, "tokens": s.tokens}
        for prefix, s in scores.items()
    }
    lines = [
        f"{prefix}: {row['bits_per_byte']:.4f} bits/byte, {row['nats_per_token']:.4f} nats/token, "
        f"{row['tokens']:,} tokens"
        for prefix, row in rows.items()
    ]
    answer(asked, rows, "\n".join(lines))
    return 0


def report(asked: argparse.Namespace) -> int:
    """`rewarm report`: one HTML page about runs, and their table."""
    from trainer.study.report import report as write_report
    from trainer.study.report import table

    runs = [Path(run) for run in asked.runs]
    write_report(runs, Path(asked.out))
    answer(asked, {"out": asked.out}, f"{table(runs)}\n\n{asked.out}")
    return 0


def study(asked: argparse.Namespace) -> int:
    """`rewarm study`: a paper's experiment with the user's recipe and data."""
    from trainer.plan import devices
    from trainer.study import series

    out, world_size = Path(asked.out), asked.nproc or devices()
    trials = series.plan(asked.name, asked.recipe, out, asked.overrides, world_size)
    arms = series.write_arms(trials, out)
    told = {"arms": str(arms), "runs": [str(trial.directory) for trial in trials]}
    if asked.arms_only:
        submit = f"sbatch --array=1-{len(trials)} launch/slurm/study.sbatch {asked.recipe} {arms}"
        answer(asked, told, f"{arms}: {len(trials)} arms\n{submit}")
        return 0

    def say(line: str) -> None:
        print(f"rewarm: {line}", file=sys.stderr, flush=True)

    if status := series.train(trials, asked.recipe, world_size, say):
        return status
    page = out / "report.html"
    answer(asked, {**told, "report": str(page)}, f"{series.conclude(asked.name, trials, out)}\n\n{page}")
    return 0
