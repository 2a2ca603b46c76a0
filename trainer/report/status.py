"""What runs are doing now: from their `status.json`, from Slurm's queue, and from how old the status is."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tokenization.errors import UserError
from tokenization.tables import text_table
from trainer.machine.slurm import QueuedJob, queued_jobs
from trainer.metrics import names
from trainer.metrics.heartbeat import EVERY_S, read_status
from trainer.metrics.jsonl import read_metrics
from trainer.metrics.progress import short
from trainer.storage.run_directory import RunDirectory

STALE_S = 6 * EVERY_S
"""A status that is older than this, of a run that should write one, tells that nobody writes it any more."""

STILL_S = 600.0
"""A run that takes no step for so long is told: it validates, saves, or hangs."""

_NOT_A_RUN = "is not a run directory"


@dataclass(frozen=True)
class RunStatus:
    """A run as its status, the queue and the clock show it."""

    run: str
    state: str
    """That of `metrics.heartbeat`; or `starting`, `gone`, `unknown`."""
    note: str = ""
    """Why; what a person may want to do."""
    step: int = 0
    tokens: int = 0
    total_tokens: int | None = None
    eta_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    host: str | None = None
    job: str | None = None


def statuses_of(directories: Sequence[Path]) -> list[RunStatus]:
    """Find out what each run is doing; the queue is asked once for all.

    Raises:
        UserError: none of the directories is that of a run.
    """
    found = [(path, _read(path)) for path in directories]
    if all(status["message"] == _NOT_A_RUN for _, status in found):
        fix = "give the run_dir of a recipe"
        raise UserError(_NOT_A_RUN, field="RUN", value=str(directories[0]), fix=fix)
    jobs = [str(status["job"]) for _, status in found if status["job"] and status["state"] != "finished"]
    queue = queued_jobs(jobs)
    now, host = time.time(), socket.gethostname()
    shown = []
    for path, status in found:
        here = status["host"] == host and status["pid"] is not None
        ended = here and not psutil.pid_exists(status["pid"])
        state, note = judge(status, queue, now, ended=ended)
        numbers = {
            name: status[name] for name in ("step", "tokens", "total_tokens", "metrics", "host", "job")
        }
        eta = status["eta_s"] if state in ("running", "saving") else None
        shown.append(RunStatus(str(path), state, note, eta_s=eta, **numbers))
    return shown


def judge(
    status: Mapping[str, Any], queue: Mapping[str, QueuedJob] | None, now: float, *, ended: bool = False
) -> tuple[str, str]:
    """Say in which state a run is, and why.

    Args:
        status: what `status.json` says.
        queue: Slurm's jobs by number; None where it cannot be asked.
        now: seconds since 1970.
        ended: whether the process that wrote the status is known to have ended.
    """
    state, job, note = status["state"], status["job"], status["message"] or ""
    queued = (queue or {}).get(str(job))
    if state in ("finished", "unknown"):
        return state, note
    if queued is not None and queued.waits:
        return "queued", f"job {job} waits: {queued.reason}"
    silent_s = now - status["time"]
    if state in ("running", "saving") and not ended and silent_s < STALE_S:
        still_s = now - (status.get("step_time") or now)
        return state, f"no step for {duration(still_s)}" if still_s > STILL_S else note
    if state in ("running", "saving"):
        note = f"no sign of life since {_moment(status['time'])} ({duration(silent_s)} ago)"
    if queued is not None:
        where = f" on {queued.nodes}" if queued.nodes else ""
        return "starting", f"job {job} is {queued.state}{where}" + (f"; {note}" if note else "")
    if state == "queued":
        if queue is None:
            return state, f"job {job}: squeue cannot be asked here"
        return "gone", f"job {job} is not in the queue, and has not begun to train; see logs/job-{job}.log"
    return ("gone" if state in ("running", "saving") else state), note


def status_table(found: Sequence[RunStatus]) -> str:
    """Write a table of runs, a line each."""
    numbers = ("step", "done", "loss", "upstream", "downstream", "forgetting", "tokens/s", "ETA")
    head = ("run", "state", *numbers, "where", "note")
    return text_table(head, [_row(status) for status in found], f"<<{'>' * len(numbers)}<<")


def _row(status: RunStatus) -> list[str]:
    def show(metric: str, form: str) -> str:
        return format(status.metrics[metric], form) if metric in status.metrics else "-"

    live = status.state in ("running", "saving")
    rate = status.metrics.get(names.TOKENS_PER_S) if live else None
    job = f"job {status.job}" if status.job else None
    return [
        status.run,
        status.state,
        f"{status.step:,}",
        f"{status.tokens / status.total_tokens:.0%}" if status.total_tokens else "-",
        show(names.LOSS, ".4f"),
        show(names.UPSTREAM, ".4f"),
        show(names.DOWNSTREAM, ".4f"),
        show(names.FORGETTING, "+.4f"),
        "-" if rate is None else short(rate),
        "-" if status.eta_s is None else duration(status.eta_s),
        ", ".join(part for part in (status.host, job) if part) or "-",
        status.note,
    ]


def duration(seconds: float) -> str:
    """Write a time in its two largest units: 3 d 4 h, 2 h 5 min, 4 min, 12 s."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} min"
    if left < 86400:
        return f"{left // 3600} h {left % 3600 // 60} min"
    return f"{left // 86400} d {left % 86400 // 3600} h"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _read(path: Path) -> dict[str, Any]:
    """Read the status of a run; of one that has none, what its metrics tell."""
    directory = RunDirectory(path)
    unknown = ("message", "total_tokens", "eta_s", "host", "pid", "job")
    status: dict[str, Any] = {**dict.fromkeys(unknown), "step": 0, "tokens": 0, "metrics": {}}
    status |= read_status(path)
    if "state" in status:
        if status["job"] is None and status["state"] == "queued":
            status["job"] = directory.read_submission().get("job")
        return status
    status |= {"state": "unknown", "time": 0.0}
    if directory.metrics.exists():
        history = read_metrics(path)
        for record in history:
            status |= {name: record[name] for name in ("step", "tokens", "time")}
            status["metrics"] |= {name: record[name] for name in names.SHOWN if name in record}
        when = f"; its last line is of {_moment(status['time'])}" if history else ""
        return {**status, "message": f"has no status.json{when}"}
    begun = directory.recipe.exists() or directory.checkpoints.exists()
    return {**status, "message": "has no status.json" if begun else _NOT_A_RUN}
