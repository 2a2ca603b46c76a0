"""What the `deepspeed` launcher starts on every rank: `deepspeed launch/train.py RECIPE [field=value …]`."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.machine.signals import exit_on_signal

LOCAL_RANK = re.compile(r"--local[_-]rank(=.*)?")
"""What launchers add, and the environment tells as well; torch's with a dash."""


def without_local_rank(words: list[str]) -> list[str]:
    """Return the arguments of `rewarm train`; the launcher's come before the recipe."""
    if words and (added := LOCAL_RANK.fullmatch(words[0])):
        return words[1 if added[1] else 2 :]
    return words


if __name__ == "__main__":
    exit_on_signal()  # before the imports, which take a while
    from trainer.cli.main import main

    sys.exit(main(["train", *without_local_rank(sys.argv[1:])]))
