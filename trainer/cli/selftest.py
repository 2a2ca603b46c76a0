"""`rewarm selftest`: does this machine train as plain PyTorch does?"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenization.errors import ExitCode, UserError
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, positive_number, whole_numbers
from trainer.engine.diagnosis import Finding, Trial
from trainer.machine.local_ranks import run_ranks

WORKER = "trainer.engine.selftest"
"""The module that every rank runs."""

STAGES = (0, 1, 2, 3)

RANKS_ON_CPU = 2

TRIAL_PATIENCE_S = 600.0
"""How long one trial may take, the start of the ranks and the compiling of DeepSpeed's ops included."""


def add_selftest(commands: Any) -> None:
    """Add `selftest`."""
    selftest = add_command(commands, "selftest", selftest_command, "--gpus 8")
    ranks = f"number of GPUs, or of ranks on the CPU (default: all GPUs; {RANKS_ON_CPU} ranks without one)"
    selftest.add_argument("--gpus", type=positive_number, metavar="N", help=ranks)
    stages = "ZeRO stages to try (default: 0,1,2,3)"
    selftest.add_argument("--stages", type=whole_numbers, default=list(STAGES), metavar="S,…", help=stages)


def selftest_command(args: argparse.Namespace) -> int:
    """Compare steps at every ZeRO stage, precision and accumulation with plain PyTorch, on 1 and N ranks."""
    if unknown := sorted(set(args.stages) - set(STAGES)):
        raise UserError("is not a ZeRO stage", field="--stages", value=unknown[0], fix="use 0, 1, 2 and 3")
    findings, problems = [], []
    for ranks in sorted({1, _count(args.gpus)}):
        found, status = try_on(ranks, args.stages)
        if status in (ExitCode.REQUEUE, ExitCode.INTERRUPTED):
            return status  # by a signal
        findings += found
        problems += [f"{finding.trial}: {finding.reason}" for finding in found if not finding.ok]
        if status:
            after = f"after {found[-1].trial}" if found else "before the first trial ended"
            many = f"{ranks} rank{'s' * (ranks > 1)}"
            problems.append(f"{many}: the ranks ended with status {status} {after}; see the log above")
    rows = [finding.to_json() for finding in findings]
    print_answer(args, {"findings": rows, "problems": problems}, "\n".join([*_table(findings), *problems]))
    return ExitCode.FAILED if problems else ExitCode.DONE


def try_on(ranks: int, stages: Sequence[int]) -> tuple[list[Finding], int]:
    """Make every trial on so many ranks; return what they found, and their exit status."""
    with tempfile.TemporaryDirectory(prefix="rewarm-selftest-") as folder:
        file = Path(folder) / "findings.jsonl"
        file.touch()
        words = ["--module", WORKER, str(file), *map(str, stages)]
        status = run_ranks(words, ranks, too_late=_Patience(file).is_over)
        return [Finding.from_json(json.loads(line)) for line in file.read_text("utf-8").splitlines()], status


class _Patience:
    """Whether a file has not grown for too long: ranks that wait for each other may do so for ever."""

    def __init__(self, file: Path) -> None:
        self._file, self._size, self._since = file, 0, time.monotonic()

    def is_over(self) -> bool:
        size = self._file.stat().st_size
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since > TRIAL_PATIENCE_S


def _count(given: int | None) -> int:
    """Return the number of ranks.

    Raises:
        UserError: this machine has fewer GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    if given is not None and 0 < gpus < given:
        what, fix = f"is more than this machine has ({gpus})", "run it on each node with its own number"
        raise UserError(what, field="--gpus", value=given, fix=fix)
    return given or gpus or RANKS_ON_CPU


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a line for each trial, and one that sums up."""
    yield "ranks  precision  ZeRO  micro batches  gradient  moments   losses    norms     weights"
    for finding in findings:
        trial: Trial = finding.trial
        numbers = "  ".join(f"{value:<8.1e}" for value in vars(finding.apart).values())
        place = f"{trial.ranks:>5}  {trial.dtype:<9}  {trial.stage:>4}  {trial.micro_batches:>13}"
        yield f"{place}  {numbers}  {'ok' if finding.ok else 'WRONG'}"
    wrong = sum(not finding.ok for finding in findings)
    told = f"{wrong} of them WRONG" if wrong else "all within their limits"
    yield f"{len(findings)} ways to train, relative differences from plain PyTorch in fp64: {told}"
