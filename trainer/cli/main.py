"""The command `rewarm`: parses arguments and calls one function per command."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import trainer
from tokenization.errors import ExitCode, RewarmError, did_you_mean
from trainer.cli.arguments import Command
from trainer.cli.completion import add_completion
from trainer.cli.data import add_data
from trainer.cli.jobs import add_jobs
from trainer.cli.merge import add_merge
from trainer.cli.model import add_model
from trainer.cli.recipe import add_recipes
from trainer.cli.runs import add_runs
from trainer.cli.selftest import add_selftest
from trainer.cli.study import add_study
from trainer.cli.vocab import add_vocab
from trainer.machine.log_lines import file_handler, logger, show_log_lines
from trainer.machine.ranks import note_status, rank_or_0
from trainer.machine.signals import end_failed_rank, must_end_abruptly, wait_for_rank0
from trainer.machine.streams import enduring


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input is one line on standard error and a non-zero exit code."""
    _escape_on(sys.stdout)
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0].startswith(
        ("--local_rank=", "--local-rank=")
    ):  # a launcher's; the environment says it too
        words = words[1:]
    args = _parse(words)
    with enduring("stderr"):
        try:
            status = _run(args)
        except Exception:
            if must_end_abruptly.is_set():
                traceback.print_exc()
                file_handler.write(traceback.format_exc())
                note_status(ExitCode.FAILED)
                end_failed_rank(ExitCode.FAILED)
            raise
        end_failed_rank(status)
    return status


def _run(args: argparse.Namespace) -> int:
    """Run the command of `args`; an expected error is one line."""
    rank = rank_or_0()
    show_log_lines(rank)
    command: Command = args.command
    try:
        return command(args)
    except RewarmError as error:
        # Rank 0 speaks first: if its error is the same, the launcher ends this rank before it repeats it.
        note_status(error.exit_code)
        wait_for_rank0(rank, error.exit_code)
        logger.error(error)
        return error.exit_code
    except BrokenPipeError:
        return ExitCode.FAILED
    except KeyboardInterrupt:
        logger.warning("interrupted")
        return ExitCode.INTERRUPTED


def _escape_on(stream: Any) -> None:
    """Make `stream` escape what it cannot show, such as file names in GBK, instead of failing."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; field=value words may follow an option, where argparse gives up on them."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    overrides = hasattr(args, "overrides")
    if rest and (not overrides or any(word.startswith("-") or "=" not in word for word in rest)):
        _refuse_words(args.own_parser, rest)
    if overrides:
        args.overrides = [*args.overrides, *rest]
    return args


def _refuse_words(parser: argparse.ArgumentParser, rest: Sequence[str]) -> NoReturn:
    """End with what the command does not know, and the option that may have been meant."""
    flag = next((word.partition("=")[0] for word in rest if word.startswith("--")), "")
    near = did_you_mean(flag, parser._option_string_actions)
    if near is None and flag and "--sbatch" in parser._option_string_actions:
        near = f"an option of sbatch is given as --sbatch={flag}=…"
    parser.error(f"unrecognized arguments: {' '.join(rest)}" + (f"; {near}" if near else ""))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are, and not a usage of many lines with one below."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.USER, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line, with an example for each command."""
    parser = _Parser(
        prog="rewarm", description="Continued pretraining of LLaMA-style models that does not forget."
    )
    version = f"rewarm {trainer.__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_vocab,
        add_data,
        add_model,
        add_recipes,
        add_selftest,
        add_runs,
        add_merge,
        add_jobs,
        add_study,
    ):
        add(commands)
    add_completion(commands, build_parser)
    return parser


if __name__ == "__main__":  # of the ranks that `rewarm data generate` starts
    sys.exit(main())
