"""`rewarm completion`: what a shell needs to complete commands and flags."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from tokenization.errors import ExitCode, UserError
from trainer.cli.arguments import add_command

SHELLS = ("bash", "zsh")


def add_completion(commands: Any, parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add `completion`; `parser` makes the whole command line."""
    completion = add_command(commands, "completion", completion_command, "bash >> ~/.bash_completion")
    completion.add_argument("shell", choices=SHELLS, help="the shell that you use")
    completion.set_defaults(parser=parser)


def completion_command(args: argparse.Namespace) -> int:
    """Print a script by which a shell completes commands and flags."""
    if importlib.util.find_spec("shtab") is None:
        raise UserError("needs the package shtab", field="completion", fix="pip install shtab")
    import shtab

    sys.stdout.write(shtab.complete(args.parser(), args.shell) + "\n")
    return ExitCode.DONE
