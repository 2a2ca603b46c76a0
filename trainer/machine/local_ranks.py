"""Start the ranks of a program on this machine, under the `deepspeed` command of this Python environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from tokenization.errors import ExitCode
from trainer.machine.devices import count_devices, has_cuda
from trainer.machine.launcher import signal_ranks
from trainer.machine.ranks import free_port
from trainer.machine.signals import STOPS

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def run_ranks(
    program: Sequence[str],
    count: int,
    too_late: Callable[[], bool] = lambda: False,
    every_s: float = 1.0,
) -> int:
    """Run a program on `count` ranks and return the exit status of their launcher.

    Args:
        program: a script, or `--module` and the name of a module, and its arguments.
        count: number of ranks; each takes a GPU where there are GPUs.
        too_late: asked every `every_s` seconds; once it is true, all ranks are killed.
        every_s: seconds.
    """
    process = _start(program, count)
    with _forwarding({process.pid}):
        while True:
            try:
                return _exit_status(process.wait(every_s))
            except subprocess.TimeoutExpired:
                if too_late():
                    signal_ranks(process.pid, signal.SIGKILL)
            except KeyboardInterrupt:
                continue  # the terminal has sent it to the ranks as well, which save before they end


def run_together(
    programs: Mapping[str, Sequence[str]],
    count: int,
    at_once: int,
    started: Callable[[str], None] = lambda name: None,
    ended: Callable[[str, int], bool] = lambda name, status: True,
    beat: Callable[[], None] = lambda: None,
    every_s: float = 1.0,
) -> dict[str, int]:
    """Run programs on `count` ranks each, up to `at_once` at a time, and return the exit statuses by name.

    Where there are GPUs, programs that run together take different ones, and share them if there are too few.

    Args:
        programs: by name; started in this order.
        count: number of ranks of each.
        at_once: how many run at a time.
        started: told when a program starts.
        ended: told when a program has ended, with its status; no other is started once it returns False.
        beat: called every `every_s` seconds.
        every_s: seconds.
    """
    waiting, statuses, pids = deque(programs), dict[str, int](), set[int]()
    running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
    with _forwarding(pids) as heard:
        while running or (waiting and not heard):
            while waiting and len(running) < at_once and not heard:
                place = min(set(range(at_once)) - {place for place, _ in running.values()})
                name = waiting.popleft()
                started(name)
                process = _start(programs[name], count, place if at_once > 1 else None)
                running[name] = place, process
                pids.add(process.pid)
            try:
                time.sleep(every_s)
                beat()
            except KeyboardInterrupt:
                heard.append(signal.SIGINT)  # the terminal has sent it to the ranks as well
            for name, (_, process) in list(running.items()):
                if (status := process.poll()) is not None:
                    del running[name]
                    pids.discard(process.pid)
                    statuses[name] = _exit_status(status)
                    if not ended(name, statuses[name]):
                        waiting.clear()
    return statuses


def _start(program: Sequence[str], count: int, place: int | None = None) -> subprocess.Popen[bytes]:
    """Start the launcher of a program; `place` counts the programs that run together."""
    launcher = [str(Path(sys.executable).parent / "deepspeed")]
    if place is None or not has_cuda():
        launcher += ["--num_accelerators", str(count)]
    else:
        launcher += ["--include", f"localhost:{','.join(_gpus(place, count))}"]
    return subprocess.Popen(
        [*launcher, "--master_port", str(free_port()), *program],
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=sys.stderr,  # standard output is for the command's answer
    )


def _gpus(place: int, count: int) -> list[str]:
    """Return the numbers of the GPUs of one of several programs, as the machine counts them.

    The launcher drops CUDA_VISIBLE_DEVICES when it is told which ones to take.
    """
    seen = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip().isdigit()]
    known = seen or [str(number) for number in range(count_devices())]
    return [known[(place * count + number) % len(known)] for number in range(count)]


def _exit_status(status: int) -> int:
    return status if status >= 0 else STOPS.get(signal.Signals(-status), ExitCode.FAILED)


@contextlib.contextmanager
def _forwarding(launchers: Collection[int]) -> Iterator[list[int]]:
    """Pass the signals of this process on to the ranks of `launchers`, which end when their ranks have.

    Yields the signals so far.
    """
    heard: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        for launcher in tuple(launchers):
            signal_ranks(launcher, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
