"""Run the steps of benchmarks/gpu.sh, each for a limited time, and keep what they find as they find it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.gpu.rows import Row
from benchmarks.gpu.table import Table

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    """A module that runs by itself."""

    name: str
    title: str
    share: float
    """Its part of the time that is left when it begins, measured against those of the steps from it on."""
    log: str = ""
    """The log that it adds to, without `.log`; its own name by default."""


PLAN = (
    Step("ground", "Ground: the card and what it can do at best", 1.0),
    Step("right", "Right: the same numbers as plain PyTorch", 2.5),
    Step("saved", "Saved: saving, dying and resuming", 2.0),
    Step("fast", "Fast: tokens per second", 4.0),
    Step("profile", "Where the time goes", 1.0),
    Step("compiled", "Compiled: DeepSpeed's own optimizers", 1.5, log="right"),
)
"""In order of worth: what comes last is what a short lease does without."""

NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "deepspeed": "deepspeed",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "pydantic": "pydantic",
    "gigatoken": "gigatoken",
    "sentencepiece": "sentencepiece",
    "google.protobuf": "protobuf",
    "orjson": "orjson",
    "yaml": "pyyaml",
    "xxhash": "xxhash",
    "zstandard": "zstandard",
    "psutil": "psutil",
    "tqdm": "tqdm",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "hjson": "hjson",
    "einops": "einops",
    "msgpack": "msgpack",
    "cpuinfo": "py-cpuinfo",
    "awkward": "awkward",
    "typer": "typer",
}
"""Modules that the steps import, themselves or through another, and the distributions that hold them."""

FEW_LINES = 15
"""Of a step's log, shown when it fails."""


def lacking(needed: Mapping[str, str] = NEEDED) -> list[str]:
    """Name the distributions that this Python does not have, without importing any."""
    return [name for module, name in needed.items() if not _there(module)]


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that the module is in
        return False


class Run:
    """The steps one after another, until they are through or the time is over."""

    def __init__(self, out: Path, minutes: float, cpu: bool, package: str = "benchmarks.gpu") -> None:
        """Keep results in `out`; the steps are modules of `package`."""
        self.out, self.cpu, self.package = out, cpu, package
        self.extensions = out / "extensions"
        self.end = time.monotonic() + 60 * minutes
        self.table = Table(out, commit=commit(), cpu=cpu)

    def all(self, plan: Sequence[Step] = PLAN) -> bool:
        """Run the plan; whether all that was tried is right."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
            # Of our own, so that nobody else's unfinished build makes a step wait.
            self.extensions = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or made)
            self._steps(plan)
        return self.table.right

    def _steps(self, plan: Sequence[Step]) -> None:
        for number, step in enumerate(plan):
            left = self.end - time.monotonic()
            self.table.title(step.name, step.title)
            if left < 2:
                self._add(Row(step.name, "not run", None, None, "", "the time was over before it"))
                continue
            self._run(step, left * step.share / sum(one.share for one in plan[number:]))
            if self.table.failed("ground", "card"):
                break  # without a card nothing else can be tried

    def _run(self, step: Step, seconds: float) -> None:
        """One step, ended with all that it started when its time is over."""
        log = self.out / f"{step.log or step.name}.log"
        begin, begun = time.monotonic(), time.time()
        command = [sys.executable, "-u", "-m", f"{self.package}.{step.name}", "--out", str(self.out)]
        command += ["--minutes", f"{seconds / 60:.3f}", *(["--cpu"] if self.cpu else [])]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, log.open("ab") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(self.cpu, Path(scratch), self.extensions),
                start_new_session=True,
            )
            assert process.stdout is not None
            reader = threading.Thread(target=self._read, args=(step, process.stdout), daemon=True)
            reader.start()
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                end(process)
            reader.join(5)
        took = f"{time.monotonic() - begin:.0f} s"
        if status is None:
            unlock(self.extensions, begun)
            self._add(
                Row(step.name, "time limit", False, None, "", f"ended after {took}, before it was through")
            )
        elif status != 0:
            self._add(Row(step.name, "exit status", False, status, "", f"it broke off after {took}"))
        print(f"      ({step.name} took {took})", flush=True)
        if status != 0:
            print("".join(f"      | {line}\n" for line in last_lines(log)), end="", flush=True)

    def _read(self, step: Step, rows: IO[bytes]) -> None:
        for line in rows:
            try:
                self._add(Row(**json.loads(line)))
            except (ValueError, TypeError):
                text = line.decode(errors="replace").strip()
                self._add(Row(step.name, "output", False, None, "", f"is not a row: {text[:200]}"))

    def _add(self, row: Row) -> None:
        print(self.table.add(row), flush=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a step and all that it started, in whatever process group that is."""
    children = []
    if importlib.util.find_spec("psutil") is not None:
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def unlock(extensions: Path, since: float) -> None:
    """Remove the locks of builds that a killed step had begun: PyTorch waits for such a lock for ever."""
    for lock in extensions.glob("**/lock"):
        if lock.stat().st_mtime >= since:
            lock.unlink(missing_ok=True)


def environment(cpu: bool, scratch: Path, extensions: Path) -> dict[str, str]:
    """Return what a step runs in: one card or none, no network, no launcher's variables, a scratch folder."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    tools = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    always = {
        "PATH": tools,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cpu:
        alone = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        if not any(extensions.glob("**/deepspeed_shm_comm.so")):
            alone["CXX"] = "none-in-a-dry-run"  # the trainer then does without what DeepSpeed would build
    else:
        first = kept.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        alone = {"CUDA_VISIBLE_DEVICES": first or "0"}
        kept.pop("DS_ACCELERATOR", None)
    return {**kept, **always, **alone}


def commit() -> str:
    """Return the repository's commit; `REWARM_COMMIT` says it where the files came without git."""
    args = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    try:
        named = subprocess.run(
            [*args, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*args, "status", "--porcelain", "-uno"], capture_output=True, text=True)
        return f"{named}{' with changes' if changed.stdout.strip() else ''}"
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("REWARM_COMMIT", "unknown")


def last_lines(log: Path) -> list[str]:
    """Return the end of a step's log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-FEW_LINES:]


def main(arguments: list[str] | None = None) -> int:
    """0 if all that was tried is right, 1 if something is not, 2 if nothing can be tried."""
    parser = argparse.ArgumentParser(prog="bash benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all steps together")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="where the results go")
    parser.add_argument("--cpu", action="store_true", help="toy sizes without a card")
    args = parser.parse_args(arguments)
    if args.minutes <= 0:
        print(f"gpu: --minutes {args.minutes:g} is not above 0; give it ten", file=sys.stderr)
        return 2
    if missing := lacking():
        fix = f"make them where there is a network: benchmarks/gpu_wheels.sh DIR --python {_python()}"
        print(f"gpu: this Python lacks {', '.join(missing)}; {fix}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if kept := set_aside(out):
        print(f"gpu: the results of an earlier run are in {kept}", flush=True)
    return 0 if Run(out, args.minutes, args.cpu).all() else 1


def set_aside(out: Path) -> Path | None:
    """Move an earlier run's files into a folder of their own; None if there are none."""
    earlier = [
        path for path in (*out.glob("*.log"), *out.glob("*.jsonl"), *out.glob("table.md")) if path.is_file()
    ]
    if not earlier:
        return None
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    kept = out / f"before-{stamp}"
    kept.mkdir()
    for path in earlier:
        path.rename(kept / path.name)
    return kept


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


if __name__ == "__main__":
    sys.exit(main())
