"""What starting a recipe means, written for people, for programs and for the lineage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tokenization.errors import UserError
from trainer.scheduler.curves import Curve
from trainer.scheduler.guards import Advice
from trainer.scheduler.state import RunState

DRAWN_POINTS = 200
"""Points per phase of the whole run's LR."""


@dataclass(frozen=True)
class Difference:
    """A field that differs between the checkpoint and the recipe."""

    field: str
    saved: Any
    edited: Any
    part: str = ""
    """The part of a phase that the field belongs to, such as `schedule`; empty outside the phases."""

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.saved)} → {_shown(self.edited)}"


@dataclass(frozen=True)
class Refusal:
    """Why a start is refused, what a paper found about it, and the options."""

    what: str
    options: tuple[str, ...]
    finding: str = ""
    name: str | None = None
    """Name that lifts it in `allow`; None if nothing does."""


@dataclass(frozen=True)
class PhaseSpan:
    """A phase's place in the run, in tokens."""

    name: str
    start: int
    stop: int
    curve: Curve


@dataclass(frozen=True)
class Decision:
    """What starting means; training goes on from `state` (on refusal: the checkpoint's)."""

    kind: Literal["start", "restore", "new_phase", "finished", "refuse"]
    found: str
    reason: str
    state: RunState
    spans: tuple[PhaseSpan, ...]
    diff: tuple[Difference, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[Advice, ...] = ()
    lifted: tuple[str, ...] = ()
    """Names in `allow` that lifted a refusal."""
    keep_optimizer: bool = False
    """Whether the optimizer's moments are loaded with the weights."""
    edited_lr: float | None = None
    """On refusal: the next LR of the edited recipe."""

    @property
    def phase(self) -> int:
        """Number of the phase, from 0."""
        return self.state.phase

    @property
    def options(self) -> tuple[str, ...]:
        """What the user can do after a refusal."""
        return tuple(option for refusal in self.refusals for option in refusal.options)

    def lr_at(self, tokens: Iterable[int] | None = None) -> list[dict[str, float]]:
        """Return `{tokens, lr}` of the steps that start after these tokens of the run; default: all over it.

        Raises:
            UserError: tokens before the run's start or after its end.
        """
        end = self.spans[-1].stop
        wanted = sorted(set(self._grid())) if tokens is None else list(tokens)
        for token in wanted:
            if not 0 <= token <= end:
                raise UserError("is outside the run", value=token, fix=f"use 0 to {end:,} tokens")
        return [{"tokens": token, "lr": self._lr(token)} for token in wanted]

    def _grid(self) -> Iterator[int]:
        for span in self.spans:
            yield from (
                int(token) for token in np.linspace(span.start, span.stop, DRAWN_POINTS, endpoint=False)
            )
            yield from (span.start + int(piece.start) for piece in span.curve.pieces)
        yield self.spans[-1].stop

    def _lr(self, token: int) -> float:
        """Return the LR after so many consumed tokens; from now on the skipped ones do not count."""
        number = max(number for number, span in enumerate(self.spans) if span.start <= token)
        span, state = self.spans[number], self.state
        behind = state.samples * state.running.data.seq_len - state.phase_trained_tokens
        skipped = behind if number == self.phase and token >= state.tokens else 0
        return float(span.curve(token - span.start - skipped))

    def next_steps(self) -> list[dict[str, Any]]:
        """Return `{tokens, lr, what}` of the next three steps, and of where the curve turns after them."""
        if self.kind in ("finished", "refuse"):
            return []
        state, ahead = self.state, self.spans[self.phase]
        step = state.settings["seq_len"] * state.settings["global_batch_size"]
        rows = {state.tokens + number * step: "" for number in range(3)}
        rows[state.tokens] = "next step"
        for piece in ahead.curve.pieces:
            at = ahead.start + int(piece.start)
            if at > state.tokens:
                rows[at] = f"{piece.name} begins"
        for span in self.spans[self.phase + 1 :]:
            rows[span.start] = f"phase {span.name!r} begins"
        last = self.spans[-1].stop
        rows = {at: what for at, what in sorted(rows.items()) if at < last} | {last: "end"}
        return [{"tokens": at, "lr": self._lr(at), "what": what} for at, what in rows.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the decision for programs."""
        return {
            "kind": self.kind,
            "phase": self.phase,
            "phase_name": self.state.phase_name,
            "step": self.state.step,
            "tokens": self.state.tokens,
            "found": self.found,
            "reason": self.reason,
            "diff": [{"field": d.field, "saved": d.saved, "asked": d.edited} for d in self.diff],
            "refusals": [{"name": r.name, "what": r.what, "finding": r.finding} for r in self.refusals],
            "options": list(self.options),
            "warnings": [{"name": w.name, "text": w.text} for w in self.warnings],
            "lifted": list(self.lifted),
            "keep_optimizer": self.keep_optimizer,
            "lr_next": self.state.next_lr,
            "lr_asked": self.edited_lr,
        }

    def lineage(self) -> dict[str, Any]:
        """Return the record for `lineage.jsonl`: the decision, and the state that the run starts with."""
        return {**self.to_json(), "next_steps": self.next_steps(), "state": self.state.to_json()}

    def render(self) -> str:
        """Write the decision for people."""
        lines = [f"found    {self.found}", f"decided  {self.kind.replace('_', ' ')}: {self.reason}"]
        lines += [f"changed  {difference}" for difference in self.diff]
        if self.edited_lr is not None:
            lines.append(
                f"next LR  {self.state.next_lr:.6g} (checkpoint), {self.edited_lr:.6g} (edited recipe)"
            )
        for refusal in self.refusals:
            lines.append(f"refused  {refusal.what}")
            lines += [f"reason   {refusal.finding}"] if refusal.finding else []
            lines += [f"option   {option}" for option in refusal.options]
        lines += [f"allowed  {name}, by `allow`" for name in self.lifted]
        lines += [f"warning  {w.text} (silence it with allow: [{w.name}])" for w in self.warnings]
        table = self.next_steps()
        width = max((len(f"{row['tokens']:,}") for row in table), default=0)
        for number, row in enumerate(table):
            head = "LR      " if number == 0 else "        "
            lines.append(f"{head} {row['tokens']:>{width},} tokens  {row['lr']:.6g}  {row['what']}".rstrip())
        return "\n".join(lines)


def _shown(value: Any) -> str:
    """Write a value of the diff, also one that is missing."""
    return "(none)" if value is None else str(value)
