"""What goes wrong in long runs: signals, hangs, spikes, numbers that are not finite, locks of the dead."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from trainer.errors import UserError

Say = Callable[[str], None]

# ------------------------------------------------------------------------------------------------ signals

EXIT_STOPPED = 75
"""Status of a run that a signal ended after its save: the same command goes on from there (EX_TEMPFAIL)."""

EXIT_INTERRUPTED = 130
"""Status of a run that Ctrl-C ended after its save: a person wanted it, so nothing should start it again."""


class Signals:
    """Turns SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT into a question that the loop asks each step.

    The step under way is finished and saved. A second SIGINT does not wait for that. Once that is done,
    a launcher that sees one rank gone ends the others, which are about to end: that must not make a kill of
    a clean stop, so from then on these signals are ignored.
    """

    WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal that came."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        for number in self.WATCHED:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = self.asked and error is None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if stopped else handler)

    @property
    def asked(self) -> bool:
        """Whether the run has been asked to stop."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What to exit with once the run is saved; 0 when nothing was asked."""
        if self.received is None:
            return 0
        return EXIT_INTERRUPTED if self.received is signal.SIGINT else EXIT_STOPPED

    def agree(self, received: Iterable[signal.Signals | None]) -> None:
        """All ranks stop for the signal that one of them got, and with its status."""
        self.received = next((number for number in received if number is not None), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)


def stop_at_once() -> None:
    """Until `Signals` takes over, SIGTERM and SIGUSR1 end this process with the status of a requeue.

    A job may be preempted while it still loads: then there is nothing to save, and nothing to wait for.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: os._exit(EXIT_STOPPED))


# ------------------------------------------------------------------------------------------------ numbers


class NonFinite:
    """Bears a few steps whose gradients are not finite, and ends the run when they do not cease."""

    def __init__(self, limit: int = 20) -> None:
        """`limit` is how many such steps in a row are too many; fp16's loss scaler needs a dozen at first."""
        self._limit = limit
        self.in_a_row = 0
        self.total = 0

    def seen(self, step: int, applied: bool) -> None:
        """Takes note of a step, `applied` or skipped; all ranks see the same, so all stop together.

        Raises:
            UserError: the limit is reached.
        """
        self.in_a_row = 0 if applied else self.in_a_row + 1
        self.total += not applied
        if self.in_a_row >= self._limit:
            raise UserError(
                f"step {step}: gradients have not been finite for {self.in_a_row} steps in a row",
                mend="go on from an earlier checkpoint with a lower max_lr, a longer warmup, or dtype: bf16",
            )


def robust_z(history: Sequence[float], value: float) -> float:
    """By how many standard deviations `value` lies above `history`, estimated by median and MAD.

    The estimate bears outliers in up to half of the history. A flat history counts as one that wavers by
    0.1 %, so that its first wrinkle is no alarm. Not finite `value`: infinity.
    """
    if not math.isfinite(value):
        return math.inf
    middle = statistics.median(history)
    deviation = statistics.median(abs(past - middle) for past in history)
    # 1.4826 makes the MAD of a normal distribution its standard deviation.
    return (value - middle) / max(1.4826 * deviation, 1e-3 * abs(middle), sys.float_info.min)


class Spikes:
    """Watches the training loss for jumps: a bad shard, or an LR too high."""

    def __init__(self, window: int = 128, threshold: float = 8.0, at_least: int = 32) -> None:
        """A spike lies `threshold` deviations above the last `window` losses, `at_least` so many."""
        self._history: deque[float] = deque(maxlen=window)
        self._threshold, self._at_least = threshold, at_least

    def seen(self, loss: float) -> float | None:
        """The spike's height in standard deviations, or None when `loss` is as losses are."""
        height = robust_z(self._history, loss) if len(self._history) >= self._at_least else 0.0
        if math.isfinite(loss):
            self._history.append(loss)
        return height if height > self._threshold else None


# ------------------------------------------------------------------------------------------------ hangs


class Watchdog:
    """A thread that prints all stacks when the run has not been heard of for too long.

    It only tells: what ends a hang is the process group's own time-out.
    """

    def __init__(
        self,
        patience_s: float = 600.0,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stream` needs a file descriptor; standard error by default."""
        self._patience_s, self._clock = patience_s, clock
        self._stream = stream or sys.stderr
        self._last, self._doing, self._told = clock(), "starting", False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def beat(self, doing: str) -> None:
        """Says that the run is alive, and what it does next, such as "step 120" or "saving"."""
        self._last, self._doing, self._told = self._clock(), doing, False

    def look(self) -> bool:
        """Prints the stacks if the last beat is too long ago, once per silence; whether it did."""
        silence = self._clock() - self._last
        if self._told or silence < self._patience_s:
            return False
        self._told = True
        rank = os.environ.get("RANK", "0")
        line = f"rank {rank}: no progress for {silence:.0f} s while {self._doing}; stacks of all threads:"
        print(line, file=self._stream, flush=True)
        faulthandler.dump_traceback(self._stream, all_threads=True)
        return True

    def _watch(self) -> None:
        while not self._stopped.wait(min(self._patience_s / 4, 10.0)):
            self.look()


# ------------------------------------------------------------------------------------------------ locks


def extension_cache() -> Path:
    """Where torch builds its compiled ops, as torch itself finds it."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def clear_stale_locks(say: Say, cache: Path | None = None) -> list[Path]:
    """Removes locks in torch's extension cache that no live process holds, and says so.

    A rank killed while it builds or loads a compiled op leaves its `lock`, for which every later start
    would wait for ever without a word. A live holder has the file open; a compiler that outlived its rank
    works in the lock's folder, and is waited for. What another user, machine or container holds cannot be
    seen: locks of other users, and young ones on network file systems, are left alone.
    """
    cache = extension_cache() if cache is None else cache
    locks = sorted([*cache.glob("*/lock"), *cache.glob("*/*/lock")])
    if not locks or not Path("/proc/self/fd").is_dir() or not os.access(cache, os.W_OK):
        return []
    cleared = []
    with _one_at_a_time(cache):
        for lock in locks:
            if _is_stale(lock):
                lock.unlink(missing_ok=True)
                cleared.append(lock)
                say(
                    f"removed {lock}, left by a process that was killed: every start would have waited for it"
                )
    return cleared


@contextlib.contextmanager
def clearing_stale_locks(say: Say, cache: Path | None = None, every_s: float = 5.0) -> Iterator[None]:
    """`clear_stale_locks` at once and while the block runs: a holder may die while we wait for it."""
    clear_stale_locks(say, cache)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            clear_stale_locks(say, cache)

    thread = threading.Thread(target=watch, name="stale-locks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


SHARED_LOCK_AGE_S = 1800.0
"""On a network file system a lock must be this old, longer than any build, to be taken for a dead one's."""


def _is_stale(lock: Path) -> bool:
    try:
        owner = lock.stat()
    except FileNotFoundError:
        return False
    if owner.st_uid != os.geteuid():
        return False
    if _on_network(lock) and time.time() - owner.st_mtime < SHARED_LOCK_AGE_S:
        return False
    while _works_in(lock.parent) and not _is_open(lock):
        time.sleep(0.2)
    # A holder closes the file a moment before it removes it: what is stale is so at a second look.
    for _ in range(2):
        if _is_open(lock):
            return False
        time.sleep(0.1)
    return lock.exists()


def _links(what: str) -> Iterator[str]:
    """Targets of all links /proc/*/`what` that may be read."""
    for link in Path("/proc").glob(f"[0-9]*/{what}"):
        try:
            yield os.readlink(link)
        except OSError:  # the process has just ended, or is another user's
            continue


def _is_open(file: Path) -> bool:
    return str(file.resolve()) in _links("fd/*")


def _works_in(folder: Path) -> bool:
    """Whether a process other than this one has `folder` as its current directory."""
    here = str(folder.resolve())
    return here != os.getcwd() and here in _links("cwd")


NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "fuse.",
    "9p",
    "wekafs",
)
"""How the names of file systems begin that several machines share."""


def _on_network(file: Path) -> bool:
    """Whether the mount that holds `file` is one that other machines see."""
    real = str(file.resolve())
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind.startswith(NETWORK)


@contextlib.contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Two ranks that clear at once could remove each other's new lock."""
    with (cache / ".rewarm").open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no such locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
