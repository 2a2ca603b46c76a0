"""The types of arguments, and how a command is added to its noun."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from trainer.recipe.numbers import count, exact

Command = Callable[[argparse.Namespace], int]
"""Runs with the parsed arguments; returns the exit code. The first line of its docstring is the help."""


def add_noun(commands: Any, name: str, what: str) -> Any:
    """Add a noun, such as `data`; returns the commands below it."""
    return commands.add_parser(name, help=what).add_subparsers(required=True, metavar="COMMAND")


def add_command(commands: Any, name: str, run: Command, example: str) -> argparse.ArgumentParser:
    """Add a command with its help, an example of its use, and `--json`."""
    what = (run.__doc__ or name).splitlines()[0].rstrip(".")
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    parser.epilog = f"example: {parser.prog} {example}"
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(command=run)
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add a recipe and its overrides."""
    example = "change a field of the recipe, such as phases.0.schedule.max_lr=5e-5"
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help=example)


def add_text(parser: argparse.ArgumentParser, flag: str, **options: Any) -> None:
    """Add the files that text is read from, and the field that holds it."""
    defaults = {"nargs": "+", "metavar": "PATH", "help": "files or folders of text"}
    parser.add_argument(flag, **{**defaults, **options})
    parser.add_argument("--text-field", default="text", help="field of jsonl and parquet records")


def _checked(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def fraction(text: str) -> Fraction:
    """Parse an exact number: `0.5%`, `1/200` or `0.005`."""
    return Fraction(_checked(exact, text))


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


def part_of(text: str) -> tuple[int, int]:
    """Parse I/N, the I-th of N parts."""
    number, slash, parts = text.partition("/")
    if not (slash and number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N")
    return int(number), int(parts)
