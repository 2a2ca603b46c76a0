"""A small run that is killed again and again, and what must be left of it in the end: nothing to see.

Ranks are forked from a process that has imported everything, so that a restart costs a second or two;
some starts go through the real launcher. A slow disk is played by a slower `fsync`, so that kills in
the middle of saves are no accident.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import psutil
import torch

from tests.helpers import runs

SLOW_FSYNC_S = 0.03
PATIENCE_S = 180.0


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a run is killed, and how."""

    moment: str
    """`step`: once a step is recorded; `save`: while a checkpoint is being written; `start`: any time."""
    at: int
    """The step from which on `step` and `save` strike."""
    delay_s: float
    """Between the moment and the kill."""
    ranks: str
    """`one` or `all`."""
    rank: int
    """Which one."""
    asynchronous: bool
    launcher: bool
    """Started by the `deepspeed` launcher instead of by a fork."""
    number: signal.Signals = signal.SIGKILL
    """What is sent; all but SIGKILL let the ranks save and end by themselves."""


def plan(
    count: int, steps: int, seed: int, launched: int, numbers: tuple[signal.Signals, ...] = (signal.SIGKILL,)
) -> list[Kill]:
    """`count` kills in the order of the steps they strike at, `launched` of them under the launcher."""
    dice = random.Random(seed)
    # The last third is left alone, so that no start ends before it is killed.
    places = sorted(dice.randrange(1, steps * 2 // 3) for _ in range(count))
    under_launcher = set(dice.sample(range(count), launched))
    kills = []
    for number, at in enumerate(places):
        moment = dice.choice(["step", "save", "save", "start"])
        longest = {"step": 0.1, "save": 0.15, "start": 2.5}[moment]
        kills.append(
            Kill(
                moment,
                at,
                dice.uniform(0, longest),
                dice.choice(["one", "all"]),
                dice.randrange(2),
                asynchronous=number % 2 == 0,
                launcher=number in under_launcher,
                number=numbers[number % len(numbers)],
            )
        )
    return kills


class Started:
    """Two ranks of a run, under way."""

    def __init__(self, recipe: Path, kill: Kill | None, log: Path) -> None:
        overrides = [f"checkpoint.asynchronous={str(kill is None or kill.asynchronous).lower()}"]
        self.launcher: subprocess.Popen | None = None
        self._forked: list = []
        self._recipe = recipe
        if kill is not None and kill.launcher:
            with open(log, "a") as out:
                self.launcher = subprocess.Popen(
                    runs.command(recipe, 2, *overrides),
                    env=runs.environment(), stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
        else:
            context = forkserver()
            port = runs.free_port()
            self._forked = [
                context.Process(target=_rank, args=(rank, port, str(recipe), overrides, str(log)))
                for rank in (0, 1)
            ]
            for process in self._forked:
                process.start()

    def running(self) -> bool:
        """Whether the start has not ended by itself."""
        if self.launcher is not None:
            return self.launcher.poll() is None
        return all(process.is_alive() for process in self._forked)

    def ranks(self) -> list[int]:
        """Process ids in rank order, as far as they are started."""
        if self.launcher is None:
            return [process.pid for process in self._forked]
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.launcher.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    # Asked once: of a process that has just ended, the environment is empty.
                    rank = child.environ().get("RANK") if str(self._recipe) in child.cmdline() else None
                    if rank is not None:
                        found[int(rank)] = child.pid
        return [found[rank] for rank in sorted(found)]

    def kill(self, kill: Kill) -> None:
        """A signal to one rank or to all; who is left by SIGKILL is ended as every launcher ends it."""
        pids = self.ranks()
        while len(pids) < 2 and self.running():  # one may be between fork and exec, and not known by name
            pids = self.ranks()
        if kill.ranks == "one":
            pids = pids[kill.rank : kill.rank + 1]
        elif self.launcher is not None:
            os.killpg(self.launcher.pid, kill.number)
            pids = pids if kill.number == signal.SIGKILL else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kill.number)
        # A rank that ends while it loads leaves its peer waiting, whatever it was ended by.
        if kill.number == signal.SIGKILL or kill.moment == "start":
            self._tear_down()
        self.statuses = self.end()

    def _tear_down(self) -> None:
        """What deepspeed and srun do when a rank is gone, a second later.

        A rank that waits for a dead one to join, or in DeepSpeed's shared memory, cannot know that it is
        dead, and would wait for ever.
        """
        for process in self._forked:
            process.join(1)
        for process in self._forked:
            process.kill()

    def end(self) -> list[int]:
        """Waits until no process is left; the exit statuses.

        Raises:
            AssertionError: some are still there when they ought not to be; they are killed then.
        """
        deadline = time.monotonic() + PATIENCE_S
        if self.launcher is not None:
            left = [psutil.Process(pid) for pid in self.ranks() if psutil.pid_exists(pid)]
            try:
                statuses = [self.launcher.wait(PATIENCE_S)]
            except subprocess.TimeoutExpired:
                os.killpg(self.launcher.pid, signal.SIGKILL)
                raise AssertionError("the launcher did not end after a rank was killed") from None
            _, alive = psutil.wait_procs(left, timeout=10)
        else:
            for process in self._forked:
                process.join(max(0.0, deadline - time.monotonic()))
            alive = [process for process in self._forked if process.is_alive()]
            statuses = [process.exitcode for process in self._forked]
        for process in alive:
            process.kill()
        assert not alive, "a rank outlived the kill of another one"
        return statuses


def forkserver() -> ForkServerContext:
    """A context whose processes are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.crashes", "trainer.run.start", "trainer.cli.main"])
    return context


def _rank(rank: int, port: int, recipe: str, overrides: list[str], log: str) -> None:
    """What a forked rank does."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(SLOW_FSYNC_S)
        fsync(descriptor)

    os.fsync = slow  # type: ignore[assignment]
    from trainer.cli.main import main

    sys.exit(main(["train", recipe, *overrides]))


def strike(started: Started, kill: Kill, run: Path) -> str:
    """Waits for the moment and kills; what was hit. A run that ended before is left as it is."""
    begun, since = time.monotonic(), time.time()
    while started.running():
        assert time.monotonic() - begun < PATIENCE_S, f"the moment of {kill} never came"
        saving = _saving(run, since)
        if (
            (kill.moment == "start" and time.monotonic() - begun > kill.delay_s and len(started.ranks()) == 2)
            or (kill.moment == "save" and saving >= kill.at)
            or (kill.moment == "step" and runs.last_step(run) >= kill.at)
        ):
            if kill.moment != "start":
                time.sleep(kill.delay_s)
            saving = _saving(run, since)
            hit = f"saving {saving}" if saving else f"step {runs.last_step(run)}"
            if not started.running():
                break
            started.kill(kill)
            return hit
        time.sleep(0.002)
    started.end()
    return "ended before"


def _saving(run: Path, since: float) -> int:
    """The step whose checkpoint is being written; 0 when there is none, or only what a kill before left."""
    unfinished = [0]
    for path in (run / "checkpoints").glob("step-*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > since and not (path / "COMMITTED").exists():
                unfinished.append(int(path.name.removeprefix("step-")))
    return max(unfinished)


def torment(
    recipe: Path, run: Path, kills: list[Kill], log: Path, tell: Callable[[str], None] = lambda line: None
) -> int:
    """Starts the run and kills it, again and again, then lets it end; how many kills struck."""
    struck = 0
    for number, kill in enumerate(kills, start=1):
        hit = strike(Started(recipe, kill, log), kill, run)
        struck += hit != "ended before"
        how = "launcher" if kill.launcher else "fork"
        saves = "asynchronous" if kill.asynchronous else "synchronous"
        tell(f"| {number} | {how} | {saves} | {kill.moment} | {kill.ranks} | {hit} |")
    last = Started(recipe, None, log)
    statuses = last.end()
    assert statuses == [0, 0], f"the last start ended with {statuses}; see {log}"
    return struck


def differences(left: Path, right: Path) -> list[str]:
    """In what two ended runs differ: history and TensorBoard, weights and moments to the bit, steps."""
    found = []
    if runs.trace(left) != (trace := runs.trace(right)):
        found.append("the histories differ")
    drawn = [tensorboard(run) for run in (left, right)]
    found += [f"TensorBoard's {tag} differs" for tag in drawn[0] if drawn[0][tag] != drawn[1].get(tag)]
    if list(drawn[1]["loss/train"]) != list(range(1, trace[-1]["step"] + 1)):
        found.append("TensorBoard lacks steps")
    steps = [record["step"] for record in trace]
    if steps != list(range(steps[-1] + 1)):
        found.append(f"steps are missing or doubled: {steps}")
    newest = [_newest(run) for run in (left, right)]
    if newest[0].keys() != newest[1].keys():
        found.append("the checkpoints hold different tensors")
    found += [
        f"{kind} of {name} differs"
        for (name, kind), tensor in newest[0].items()
        if not torch.equal(tensor, newest[1][name, kind])
    ]
    return found


def tensorboard(run: Path) -> dict[str, dict[int, float]]:
    """The curves that TensorBoard draws of a run, step to value, without those of time and memory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("perf/", "mem/", "time"))]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def _newest(run: Path) -> dict[tuple[str, str], torch.Tensor]:
    from trainer.checkpoint import history, manifest, rank_files

    good, broken = history.scan_checkpoints(run / "checkpoints")
    assert not broken, broken
    assert manifest.verify_checkpoint(good[-1]) == []
    reader = rank_files.Reader(good[-1].files)
    return {
        (name, kind): reader.whole(name, kind)
        for name, pieces in reader.pieces.items()
        for kind in pieces[0].tensors
    }


def starts(run: Path) -> list[str]:
    """What each start decided."""
    return [json.loads(line)["kind"] for line in (run / "lineage.jsonl").open()]
