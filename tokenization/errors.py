"""The errors that are shown as one line, and the exit codes of all commands; `trainer` uses them too."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit status of a command, for batch scripts."""

    DONE = 0
    FAILED = 1
    """Any other failure: a broken guarantee, a closed pipe."""
    USER = 2
    """The recipe, the data or the command line is wrong: running it again changes nothing."""
    REQUEUE = 75
    """Stopped by a signal after its save, or the disk, the network or a node failed: the same command
    continues from there (EX_TEMPFAIL)."""
    INTERRUPTED = 130
    """Ended by Ctrl-C after its save: it must not be started again automatically."""


class RewarmError(Exception):
    """Base of every error that is shown as one line instead of a traceback."""

    exit_code = ExitCode.FAILED


class UserError(RewarmError):
    """The recipe, the data or the command line is wrong: running it again changes nothing."""

    exit_code = ExitCode.USER

    def __init__(
        self,
        what: str,
        *,
        file: object = None,
        field: str | None = None,
        value: object = None,
        fix: str | None = None,
    ) -> None:
        """Describe `what` is wrong, in which `file` and `field`, with which `value`, and how to `fix` it."""
        where = "".join(f"{part}: " for part in (file, field) if part is not None)
        shown = "" if value is None else f"{value!r} "
        super().__init__(where + shown + what + (f"; {fix}" if fix else ""))


class UserErrors(UserError):
    """Several user errors, reported at once."""

    def __init__(self, problems: Iterable[UserError]) -> None:
        self.problems = list(problems)
        Exception.__init__(self, "\n".join(str(problem) for problem in self.problems))


class InfrastructureError(RewarmError):
    """The disk, the network or a node failed: the same command may succeed later."""

    exit_code = ExitCode.REQUEUE


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return "did you mean 'x'?" for a misspelt `word`, or None if no known word is similar.

    Words are similar from `cutoff` on: 0 for nothing in common, 1 for equal ones (difflib's ratio).
    """
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {found[0]!r}?" if found else None
