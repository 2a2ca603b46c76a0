"""Ranks that are started one by one, without a launcher: each has an exit code and a log of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tests.helpers import runs

PATIENCE_S = 400.0


def environment(**variables: str) -> dict[str, str]:
    """That of `runs`, without what any launcher has set, and with these variables."""
    launchers = ("SLURM_", "OMPI_", "PMI", "MPI_", "MV2_", "PALS_", "REWARM_")
    kept = {name: value for name, value in runs.environment().items() if not name.startswith(launchers)}
    return {**kept, **variables}


def hear_signals() -> None:
    """Undo what a shell does to its background jobs, and nohup to all: the tests may run below one."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Rank:
    """A process of a run; its standard error is in a file."""

    started: ClassVar[list["Rank"]] = []
    """Those that `end_all` has not seen to yet."""

    def __init__(
        self, log: Path, *arguments: str, program: tuple[str, ...] = (), stderr=None, **variables: str
    ) -> None:
        self.log = log
        command = [sys.executable, str(runs.SCRIPT), *arguments]
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [*program, *command],
                env=environment(**variables),
                stdout=out,
                stderr=stderr or out,
                preexec_fn=hear_signals,
            )

        Rank.started.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Kill what a failed test has left running."""
        for rank in cls.started:
            rank.process.kill()
            rank.process.wait()
        cls.started.clear()

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code; it is killed if it does not end in time, which fails the test."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"still running after {patience_s:.0f} s:\n{self.said()[-3000:]}") from None

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


def start_ranks(
    folder: Path, size: int, *arguments: str, program: tuple[str, ...] = (), **variables: str
) -> list[Rank]:
    """Start all ranks of a run by torch's names; a `program` gets what it replaces as its arguments."""
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(runs.free_port())}
    return [
        Rank(
            folder / f"rank-{k}.log",
            *arguments,
            program=program,
            RANK=str(k),
            LOCAL_RANK=str(k),
            **common,
            **variables,
        )
        for k in range(size)
    ]


def wait_until(happened: Callable[[], object], ranks: list[Rank], patience_s: float = PATIENCE_S) -> None:
    """Wait for something that happens while all ranks run."""
    deadline = time.monotonic() + patience_s
    while not happened():
        ended = [rank.said()[-3000:] for rank in ranks if rank.process.poll() is not None]
        assert not ended, f"a rank ended before:\n{ended[0]}"
        assert time.monotonic() < deadline, f"it did not happen in time:\n{ranks[0].said()[-3000:]}"
        time.sleep(0.02)


def saved_steps(run: Path) -> list[int]:
    """The steps of all committed checkpoints."""
    return sorted(int(marker.parent.name[5:]) for marker in run.glob("checkpoints/step-*/COMMITTED"))
