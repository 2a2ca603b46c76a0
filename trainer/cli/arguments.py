"""The types of arguments, and how a command is added to its noun."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from trainer.recipe.numbers import count, exact
from trainer.storage.shipped import find_recipe

Command = Callable[[argparse.Namespace], int]
"""Runs with the parsed arguments; returns the exit code. The first line of its docstring is the help."""

RUNS = "run directories, or folders of them, such as the --out of a study"


def add_noun(commands: Any, name: str, what: str) -> Any:
    """Add a noun, such as `data`; returns the commands below it."""
    return commands.add_parser(name, help=what).add_subparsers(required=True, metavar="COMMAND")


def add_command(
    commands: Any, name: str, run: Command, example: str, what: str | None = None
) -> argparse.ArgumentParser:
    """Add a command with its help (`what`, or the first line of `run`), an example, and `--json`."""
    what = what or (run.__doc__ or name).splitlines()[0].rstrip(".")
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    parser.epilog = f"example: {parser.prog} {example}"
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(command=run, own_parser=parser)
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add a recipe and its overrides."""
    example = "change a field of the recipe, such as phases.0.schedule.max_lr=5e-5"
    parser.add_argument("recipe", type=recipe_path, help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="field=value", help=example)


def add_text(parser: argparse.ArgumentParser, flag: str, **options: Any) -> None:
    """Add the files that text is read from, the field that holds it, and their encoding."""
    defaults = {"type": path_text, "nargs": "+", "metavar": "PATH", "help": "files or folders of text"}
    parser.add_argument(flag, **{**defaults, **options})
    field = "field of jsonl and parquet records that holds the text (default: text)"
    parser.add_argument("--text-field", default="text", metavar="NAME", help=field)
    encoding = "encoding of the .txt and .jsonl files that are not UTF-8, such as gb18030 (default: none)"
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help=encoding)


def add_rejects(parser: argparse.ArgumentParser) -> None:
    """Add the number or share of malformed records that a job tolerates."""
    tolerated = (
        "malformed records tolerated before the job stops, such as 1000 or 1%% (default: 10%%); "
        "empty records do not count"
    )
    parser.add_argument("--max-rejects", type=number_or_share, metavar="N|SHARE", help=tolerated)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add the permission to replace what an earlier command wrote."""
    parser.add_argument("--overwrite", action="store_true", help="replace the model or tokenizer at --out")


def _checked(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def fraction(text: str) -> Fraction:
    """Parse an exact number: `0.5%`, `1/200` or `0.005`."""
    return Fraction(_checked(exact, text))


def path_text(text: str) -> str:
    """Parse a path; an empty one, which a shell makes of an unset variable, would be the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; is a variable of the shell unset?")
    return text


def prefix_text(text: str) -> str:
    """Parse the prefix of shards: what their files begin with, and not a folder."""
    if text.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name the shards in it, such as {text}zh")
    return path_text(text)


def recipe_path(text: str) -> str:
    """Parse the path of a recipe; `launch/recipes/NAME` is the shipped one wherever rewarm is installed."""
    return find_recipe(path_text(text))


def number_or_share(text: str) -> int | Fraction:
    """Parse a whole number, or a share of at most 100 %."""
    share = fraction(text)
    if "%" not in text and share.denominator == 1 and share >= 0:
        return int(share)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor a share of at most 100%")
    return share


def whole_number(text: str) -> int:
    """Parse a whole number of at least 0, such as `1e9`."""
    return int(_checked(count, text))


def whole_numbers(text: str) -> list[int]:
    """Parse whole numbers between commas."""
    return [whole_number(part) for part in text.split(",")]


def positive_number(text: str) -> int:
    """Parse a whole number of at least 1."""
    if (number := whole_number(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def gibibytes(text: str) -> float:
    """Parse the memory of a GPU in GiB, as makers write it: `80`."""
    if not 1 <= (size := float(fraction(text))) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not the memory of a GPU in GiB, such as 80")
    return size


def utilization(text: str) -> float:
    """Parse a share of a GPU's peak FLOP/s: `40%` or `0.4`."""
    if not 0 < (share := float(fraction(text))) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of the peak above 0 and up to 100%")
    return share


def positive_real(text: str) -> float:
    """Parse a number above 0."""
    if not (value := float(fraction(text))) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def temperature(text: str) -> float:
    """Parse a temperature of sampling: a number above 0."""
    if not 0 < (value := float(fraction(text))) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature above 0 and up to 100")
    return value


def part_of(text: str) -> tuple[int, int]:
    """Parse I/N, the I-th of N parts."""
    number, slash, parts = text.partition("/")
    if not (slash and number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N")
    return int(number), int(parts)
