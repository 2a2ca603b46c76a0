"""The house's errors, which `tokenization`, the package below, defines for both."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RewarmError(Exception):
    """Base of every error that is shown as one line instead of a traceback."""

    exit_code = 1


class UserError(RewarmError):
    """The recipe, the data or the command line is wrong: running it again changes nothing."""

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        file: object = None,
        field: str | None = None,
        value: object = None,
        fix: str | None = None,
    ) -> None:
        """`what` went wrong, in which `file` and `field`, with which `value`, and how to `fix` it."""
        where = "".join(f"{part}: " for part in (file, field) if part is not None)
        shown = "" if value is None else f"{value!r} "
        super().__init__(where + shown + what + (f"; {fix}" if fix else ""))


class UserErrors(UserError):
    """Several user errors, reported at once."""

    def __init__(self, problems: Iterable[UserError]) -> None:
        self.problems = list(problems)
        Exception.__init__(self, "\n".join(str(problem) for problem in self.problems))


class InfrastructureError(RewarmError):
    """The disk, the network or a node failed: the same command may succeed later (EX_TEMPFAIL)."""

    exit_code = 75


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A fix for a misspelt `word`: "did you mean 'x'?", or None when nothing known is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else None
