"""A study's directory as a typed table: what each arm varied, and what its two losses did."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenization import disk
from tokenization.errors import UserError
from trainer.metrics import names
from trainer.metrics.heartbeat import read_status
from trainer.model.size import parameters
from trainer.report.runs import RunHistory, finite, gather_runs
from trainer.storage.run_directory import RunDirectory

RECORD = "study.json"
"""File in a study's directory: which study it is, of which recipe, and its arms as `Planned`."""


@dataclass(frozen=True)
class Planned:
    """An arm of a study as its record holds it."""

    name: str
    """What is varied; arms of other seeds and sizes have the same name."""
    directory: str
    """The run directory, below the study's."""
    seed: int
    size: str = ""
    """Of `--sizes`; empty if the study has only one."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe that the arm sets, by their dotted names."""
    phase: int = 0
    """The first phase that is studied: what comes before it makes the base."""


@dataclass(frozen=True)
class StudyRecord:
    """What a study is, as its directory records it."""

    study: str
    recipe: str
    arms: tuple[Planned, ...]


@dataclass(frozen=True)
class ScoreCurve:
    """The scores on a validation set over the tokens of the studied phase; the first one is the base's."""

    tokens: tuple[int, ...] = ()
    """Since the start of the studied phase."""
    nats_per_token: tuple[float, ...] = ()
    bits_per_byte: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tokens)

    @property
    def base(self) -> float:
        """Bits per byte before the studied phase; NaN if they were not measured."""
        return self.bits_per_byte[0] if self.tokens and self.tokens[0] == 0 else math.nan

    @property
    def end(self) -> float:
        """The last bits per byte, finite or not; NaN without a score."""
        return self.bits_per_byte[-1] if self.tokens else math.nan

    def after(self, tokens: float) -> float:
        """Return the first bits per byte measured after at least so many tokens; NaN if there are none."""
        pairs = zip(self.tokens, self.bits_per_byte, strict=True)
        return next((bits for when, bits in pairs if when >= tokens), math.nan)


@dataclass(frozen=True)
class Arm:
    """One run of a study."""

    name: str
    seed: int
    size: str
    fields: Mapping[str, Any]
    """Fields of the recipe that the arm sets, by their dotted names."""
    parameters: int
    """Weights of the model; 0 if the run does not record its model."""
    tokens: int
    """Consumed since the start of the studied phase."""
    replay: float | None
    """Replay's share of the last phase's tokens; None if the run has not begun."""
    upstream: ScoreCurve
    downstream: ScoreCurve
    finished: bool
    diverged: bool
    from_scratch: bool
    directory: Path

    @property
    def forgetting(self) -> float:
        """Upstream bits per byte at the end above the base's; NaN where there is nothing to forget."""
        return math.nan if self.from_scratch else self.upstream.end - self.upstream.base


def write_record(directory: Path, record: StudyRecord) -> None:
    """Write what a study is to its directory; arms of earlier calls, of other seeds or values, stay in it.

    Raises:
        UserError: the directory holds another study.
    """
    path, arms = directory / RECORD, record.arms
    if path.exists():
        earlier = read_record(directory)
        if earlier.study != record.study:
            what, fix = f"holds the study {earlier.study}, not {record.study}", "give another --out"
            raise UserError(what, field="--out", value=str(directory), fix=fix)
        known = {arm.directory for arm in arms}
        arms += tuple(arm for arm in earlier.arms if arm.directory not in known)
    directory.mkdir(parents=True, exist_ok=True)
    tree = {**vars(record), "arms": [vars(arm) for arm in arms]}
    disk.write_atomically(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def read_record(directory: str | Path) -> StudyRecord:
    """Read what a study is.

    Raises:
        UserError: the directory is not a study's, or its record is damaged.
    """
    path = Path(directory) / RECORD
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        arms = tuple(Planned(**arm) for arm in tree["arms"])
        return StudyRecord(str(tree["study"]), str(tree["recipe"]), arms)
    except FileNotFoundError as error:
        raise UserError("is missing", file=path, fix="give the --out of `rewarm study`") from error
    except (ValueError, TypeError, KeyError) as error:
        what, fix = f"is damaged ({error})", "run the same `rewarm study` again, which writes it"
        raise UserError(what, file=path, fix=fix) from error


def read_results(directory: str | Path) -> list[Arm]:
    """Read the arms of a study that have begun, in the order of its record.

    Raises:
        UserError: the directory is not a study's, or a run of it is damaged.
    """
    return read_arms(directory, read_record(directory).arms)


def read_arms(directory: str | Path, planned: Iterable[Planned]) -> list[Arm]:
    """Read those of the `planned` arms that have begun to record.

    Raises:
        UserError: a run is damaged.
    """
    begun = [(one, Path(directory) / one.directory) for one in planned]
    begun = [(one, path) for one, path in begun if RunDirectory(path).metrics.exists()]
    histories = gather_runs([path for _, path in begun]) if begun else []
    return [_arm(one, history) for (one, _), history in zip(begun, histories, strict=True)]


def _arm(planned: Planned, history: RunHistory) -> Arm:
    ends = history.phase_ends()
    start = ends[planned.phase - 1] if planned.phase else 0
    tokens = max(0, history.tokens - start)
    complete = bool(ends) and history.tokens >= ends[-1]
    return Arm(
        name=planned.name,
        seed=planned.seed,
        size=planned.size,
        fields=planned.fields,
        parameters=_parameters(history.path),
        tokens=tokens,
        replay=history.replay,
        upstream=_curve(history, "upstream", start),
        downstream=_curve(history, "downstream", start),
        finished=complete or read_status(history.path).get("state") == "finished",
        diverged=history.diverged_at is not None,
        from_scratch=history.from_scratch and planned.phase == 0,
        directory=history.path,
    )


def _curve(history: RunHistory, stream: str, start: int) -> ScoreCurve:
    """Return the scores from the start of the studied phase on; of a diverged run the last is infinite."""
    bits, nats = names.stream_bits_per_byte(stream), names.stream_nats_per_token(stream)
    points = [
        (int(record["tokens"]) - start, _drawn(record.get(nats, 0.0)), _drawn(record[bits]))
        for record in history.comparable(bits)
        if bits in record and record["tokens"] >= start
    ]
    return ScoreCurve(*zip(*points, strict=True)) if points else ScoreCurve()


def _drawn(value: float) -> float:
    return value if finite(value) else math.inf


def _parameters(run: Path) -> int:
    """Count the weights of the model that a run records; 0 if it does not."""
    try:
        identity = json.loads(RunDirectory(run).identity.read_text(encoding="utf-8"))
        config = {
            name.removeprefix("model."): json.loads(value)
            for name, value in identity.items()
            if name.startswith("model.")
        }
        return parameters(config)
    except (OSError, ValueError, TypeError, KeyError):
        return 0
