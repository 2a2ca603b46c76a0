"""The command `rewarm`: words in, a function of a lower room called, lines and an exit status out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from trainer import commands
from trainer.errors import RewarmError
from trainer.launcher import note_status, rank_or_0, wait_for_rank0
from trainer.numbers import count, exact
from trainer.study.grids import STUDIES

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; bad input is one line on standard error and a non-zero status."""
    show_any_text(sys.stdout)
    parser = build_parser()
    asked, rest = parser.parse_known_args(arguments)
    # argparse gives up on field=value words that follow an option.
    if rest and (
        not hasattr(asked, "overrides") or any(word.startswith("-") or "=" not in word for word in rest)
    ):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        asked.overrides += rest
    try:
        command: Command = asked.command
        return command(asked)
    except RewarmError as error:
        _complain(error)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        if rank_or_0() == 0:
            print("rewarm: interrupted", file=sys.stderr)
        return 130


def show_any_text(stream: Any) -> None:
    """Escape what a stream cannot show, such as file names in GBK, in place of ending there."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _complain(error: RewarmError) -> None:
    """One line per problem, from the first rank if it has the same one: a thousand ranks complain once."""
    rank = rank_or_0()
    note_status(error.exit_code)
    wait_for_rank0(rank, error.exit_code)
    who = f"rank {rank}: " if rank else ""
    for line in str(error).splitlines():
        print(f"rewarm: {who}{line}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The command line, with an example for each command."""
    parser = argparse.ArgumentParser(
        prog="rewarm", description="Continued pretraining of LLaMA-style models that does not forget."
    )
    rooms = parser.add_subparsers(required=True, metavar="COMMAND")
    _vocab(rooms.add_parser("vocab", help="train, extend and examine vocabularies"))
    _data(rooms.add_parser("data", help="text to token shards, and what a mixture draws from them"))
    _model(rooms.add_parser("model", help="grow a model to an extended vocabulary"))
    _runs(rooms)
    return parser


def _vocab(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    train = _command(
        kinds,
        "train",
        commands.train_vocabulary,
        "a SentencePiece BPE vocabulary from text",
        "--input zh.jsonl --size 8000 --out zh",
    )
    train.add_argument(
        "--input", type=_path, nargs="+", required=True, metavar="PATH", help="files or folders of text"
    )
    train.add_argument("--size", type=int, required=True, help="pieces in all")
    train.add_argument("--out", type=_path, required=True, metavar="DIR")
    _text_arguments(train)
    _rejects_argument(train)
    train.add_argument("--seed", type=int, default=0)
    _overwrite(train)
    extend = _command(
        kinds,
        "extend",
        commands.extend_vocabulary,
        "a base vocabulary with new pieces",
        "--base llama2 --add zh --out llama2-zh",
    )
    extend.add_argument("--base", type=_path, required=True, metavar="TOKENIZER")
    extend.add_argument("--add", type=_path, required=True, metavar="TOKENIZER")
    extend.add_argument("--out", type=_path, required=True, metavar="DIR")
    extend.add_argument("--max-pieces", type=int, help="add at most so many")
    _overwrite(extend)
    extend.add_argument(
        "--allow-scripts",
        nargs="+",
        default=["han"],
        help="only pieces of these Unicode scripts (default: han)",
    )
    report = _command(
        kinds,
        "report",
        commands.report_vocabulary,
        "what a vocabulary does to text",
        "--tokenizer llama2-zh --text held-out.txt",
    )
    report.add_argument("--tokenizer", type=_path, required=True, metavar="DIR")
    report.add_argument(
        "--against", type=_path, metavar="DIR", help="the base, whose ids must not have changed"
    )
    report.add_argument("--text", type=_path, nargs="+", required=True, metavar="PATH")
    _text_arguments(report)


def _data(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare = _command(
        kinds,
        "prepare",
        commands.prepare_data,
        "text to token shards",
        "--input zh/ --tokenizer llama2-zh --out data/zh",
    )
    prepare.add_argument("--input", type=_path, nargs="+", required=True, metavar="PATH")
    prepare.add_argument("--tokenizer", type=_path, required=True)
    prepare.add_argument("--out", type=_path, required=True, metavar="PREFIX")
    prepare.add_argument(
        "--workers", type=int, help="processes; default: one per CPU that this process may use"
    )
    prepare.add_argument("--part", type=_part, metavar="I/N", help="only the I-th of N parts, for job arrays")
    _text_arguments(prepare)
    prepare.add_argument(
        "--documents", choices=("file", "blocks", "lines"), default="file", help="what a .txt file holds"
    )
    prepare.add_argument(
        "--validation",
        type=_exact,
        default=0,
        metavar="SHARE",
        help="held out by document hash, such as 0.5%%",
    )
    prepare.add_argument("--deduplicate", action="store_true", help="drop exact copies of documents")
    _rejects_argument(prepare)
    prepare.add_argument("--engine", metavar="NAME", help="this encoder and no other; it must agree as well")
    prepare.add_argument("--overwrite", action="store_true", help="replace what another job wrote at --out")
    inspect = _command(kinds, "inspect", commands.inspect_data, "what a shard holds", "data/zh")
    inspect.add_argument("prefix", type=_path)
    simulate = _command(
        kinds, "simulate", commands.simulate, "the samples that a recipe draws", "recipe.yaml --samples 0:100"
    )
    simulate.add_argument("recipe", type=_path)
    simulate.add_argument("overrides", nargs="*", metavar="field=value")
    simulate.add_argument("--samples", default="0:20", metavar="A:B", help="window of the run's samples")
    simulate.add_argument("--shares", action="store_true", help="only what each source gives to the window")


def _model(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    extend = _command(
        kinds,
        "extend",
        commands.extend_model,
        "grow embeddings",
        "--base llama2-7b --tokenizer llama2-zh --out llama2-7b-zh",
    )
    extend.add_argument("--base", type=_path, required=True, metavar="MODEL")
    extend.add_argument("--tokenizer", type=_path, required=True, metavar="DIR")
    extend.add_argument("--out", type=_path, required=True, metavar="DIR")
    extend.add_argument("--new-rows", choices=("subpiece_mean", "mean", "random"), default="subpiece_mean")
    extend.add_argument("--seed", type=int, default=0, help="of random rows")
    _overwrite(extend)
    extend.add_argument(
        "--text", type=_path, nargs="*", default=[], metavar="PATH", help="text to compare the losses on"
    )
    _text_arguments(extend)


def _runs(rooms: Any) -> None:
    plan = _command(
        rooms, "plan", commands.plan, "what a recipe will do, before it does it", "recipe.yaml --lr-at 0,1e9"
    )
    _recipe_arguments(plan)
    plan.add_argument(
        "--lr-at", type=_counts, metavar="T,…", help="learning rate after so many tokens of the run"
    )
    plan.add_argument("--world-size", type=_positive, default=1, help="ranks to plan for (default: 1)")
    train = _command(rooms, "train", commands.train, "train a recipe", "launch/recipes/llama2-7b-zh.yaml")
    _recipe_arguments(train)
    score = _command(
        rooms,
        "eval",
        commands.evaluate,
        "losses of a model",
        "runs/x/checkpoints/step-00001000 --data data/en",
    )
    score.add_argument("model", type=_path, metavar="MODEL|CHECKPOINT")
    score.add_argument("--data", type=_path, nargs="+", required=True, metavar="PREFIX")
    score.add_argument("--seq-len", type=_positive, default=None)
    score.add_argument("--max-tokens", type=_positive, default=None)
    export = _command(
        rooms,
        "export",
        commands.export,
        "a checkpoint as a Hugging Face model",
        "runs/x --out models/llama2-zh",
    )
    export.add_argument(
        "checkpoint",
        type=_path,
        metavar="CHECKPOINT",
        help="a checkpoint, or a run directory for its newest",
    )
    export.add_argument("--out", type=_path, required=True, metavar="DIR")
    _overwrite(export)
    export.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16")
    export.add_argument("--shard-size", type=_positive, default="5e9", help="bytes per file at most")
    report = _command(
        rooms, "report", commands.report, "one HTML page about runs", "runs/a runs/b --out report.html"
    )
    report.add_argument("runs", type=_path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=_path, required=True, metavar="FILE.html")

    study = _command(
        rooms,
        "study",
        commands.study,
        "a paper's experiment with your recipe, before you spend the cluster",
        "replay --recipe recipe.yaml --out runs/replay phases.0.tokens=1e8",
    )
    study.add_argument("name", metavar="NAME", help=", ".join(STUDIES))
    study.add_argument("--recipe", type=_path, required=True)
    study.add_argument("--out", type=_path, required=True, metavar="DIR")
    study.add_argument("--nproc", type=_positive, help="ranks of each arm (default: the GPUs here, or 1)")
    study.add_argument("--arms-only", action="store_true", help="write DIR/arms.txt for a batch system")
    study.add_argument("overrides", nargs="*", metavar="field=value", help="for every arm")


def _overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace the model or tokenizer at --out")


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=_path)
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="such as phases.0.schedule.max_lr=5e-5"
    )


def _text_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-field", default="text", help="of jsonl and parquet records")
    parser.add_argument(
        "--encoding", default="utf-8", help="of the .txt and .jsonl files that are not UTF-8, such as gb18030"
    )


def _rejects_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-rejects",
        type=_number_or_share,
        metavar="N|SHARE",
        help="malformed records that are borne, such as 1000 or 1%% (default: 10%%); empty ones do not count",
    )


def _path(text: str) -> str:
    """A path; an empty one, which a shell makes of an unset variable, would be the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path; is a variable of the shell unset?")
    return text


def _number_or_share(text: str) -> int | Fraction:
    share = _exact(text)
    if "%" not in text and share.denominator == 1 and share >= 0:
        return int(share)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor a share of at most 100%")
    return share


def _exact(text: str) -> Fraction:
    try:
        return exact(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    try:
        return count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if (number := _count(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N")
    return int(number), int(parts)


def _command(kinds: Any, name: str, run: Command, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=what, description=what)
    parser.epilog = f"example: {parser.prog} {example}"
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    parser.set_defaults(command=run)
    return parser
