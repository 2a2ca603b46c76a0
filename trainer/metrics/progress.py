"""The progress display of a run: a bar on a terminal, lines of fixed columns in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

from trainer.machine.log_lines import line_handler, print_to_stderr
from trainer.metrics import names
from trainer.metrics.jsonl import Record


class Progress:
    """A bar on a terminal, lines of fixed columns in a log."""

    HEADER = (
        f"{'step':>9} {'tokens':>9} {'done':>5} {'loss':>9} {'lr':>9} {'grad_norm':>9} {'tokens/s':>9}"
        f" {'ETA':>8} {'upstream':>9} {'downstream':>10}  (loss in nats/token, streams in bits/byte)"
    )

    def __init__(
        self,
        total_tokens: int,
        tokens: int,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 10.0,
        header_every: int = 40,
    ) -> None:
        """A log gets a line at most every `every_s` seconds, and one at each evaluation."""
        self._total, self._stream, self._clock = total_tokens, stream, clock
        self._every_s, self._header_every = every_s, header_every
        self._latest: Record = {}
        self._lines = 0
        self._first = (clock(), tokens)
        self._next_line = clock()
        self._bar: Any = None
        if stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_tokens,
                initial=tokens,
                file=stream,
                unit=" tokens",
                unit_scale=True,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
                "{postfix}",
            )
            line_handler.write = lambda line: self._bar.write(line, file=stream)

    def log(self, record: Record) -> None:
        """Show the newest value of each column."""
        self._latest.update(record)
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix(), refresh=False)
            self._bar.update(record["tokens"] - self._bar.n)
            return
        evaluated = names.UPSTREAM in record or names.DOWNSTREAM in record
        if not evaluated and self._clock() < self._next_line:
            return
        self._next_line = self._clock() + self._every_s
        if self._lines % self._header_every == 0:
            print(self.HEADER, file=self._stream)
        self._lines += 1
        print(self._line(), file=self._stream, flush=True)

    def flush(self) -> None:
        """Nothing to do: lines are written at once."""

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            line_handler.write = print_to_stderr
            self._bar.close()

    def _line(self) -> str:
        show, tokens = self._show, self._latest["tokens"]
        return (
            f"{self._latest['step']:>9} {short(tokens):>9} {tokens / self._total:>5.0%}"
            f" {show(names.LOSS, '.4f'):>9} {show(names.LR, '.3e'):>9} {show(names.GRAD_NORM, '.3f'):>9}"
            f" {short(self._rate()):>9} {self._eta():>8}"
            f" {show(names.UPSTREAM, '.4f'):>9} {show(names.DOWNSTREAM, '.4f'):>10}"
        )

    def _postfix(self) -> str:
        parts: tuple[tuple[str, str], ...] = (
            ("loss", self._show(names.LOSS, ".3f")),
            ("lr", self._show(names.LR, ".2e")),
            ("upstream", self._show(names.UPSTREAM, ".3f")),
            ("downstream", self._show(names.DOWNSTREAM, ".3f")),
        )
        if names.BUDGET in self._latest:
            budget = self._show(names.BUDGET, "g")
            parts += (
                ("forgetting", f"{self._show(names.BUDGET_READING, '+.3f')} of {budget}"),
                ("replay", self._show(names.REPLAY_RATIO, ".1%")),
            )
        return " " + " ".join(f"{label} {value}" for label, value in parts)

    def _show(self, metric: str, form: str) -> str:
        return format(self._latest[metric], form) if metric in self._latest else "-"

    def _rate(self) -> float:
        """Tokens per second: as the loop measured it, else the mean since the start."""
        started, tokens = self._first
        elapsed = self._clock() - started
        overall = (self._latest["tokens"] - tokens) / elapsed if elapsed > 0 else 0.0
        return self._latest.get(names.TOKENS_PER_S, overall)

    def _eta(self) -> str:
        """Time to the end at the rate since the start, evaluations and saves included."""
        started, tokens = self._first
        done = self._latest["tokens"] - tokens
        if done <= 0:
            return "-"
        seconds = round((self._clock() - started) * (self._total - self._latest["tokens"]) / done)
        hours, rest = divmod(max(seconds, 0), 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def short(number: float) -> str:
    """Three digits and a unit: 24.6k, 1.20M, 300G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{number:.0f}"
