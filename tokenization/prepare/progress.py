"""The progress of a long job on standard error: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_EVERY_S = 30.0


class Meter:
    """Counts finished bytes of the input on disk, and shows MB/s and tokens/s."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        """Start to count towards `total` bytes; nothing is printed unless `shown`."""
        self._total, self._began = max(total, 1), time.monotonic()
        self._printed = self._began
        self._done = self._text_bytes = self._tokens = 0
        self._shown = shown
        terminal = shown and sys.stderr.isatty()
        tqdm.monitor_interval = 0  # its thread would be running when workers are forked
        self._bar = tqdm(total=total, unit="B", unit_scale=True, leave=False) if terminal else None

    def add(self, done: int, text_bytes: int, tokens: int) -> None:
        """Count `done` bytes of input, with the text bytes and tokens that they gave."""
        self._done += done
        self._text_bytes += text_bytes
        self._tokens += tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update(done)
        elif self._shown and time.monotonic() - self._printed >= _EVERY_S:
            self._printed = time.monotonic()
            print(f"{self._done / self._total:6.1%}  {self._rates()}", file=sys.stderr, flush=True)

    def _rates(self) -> str:
        elapsed = max(time.monotonic() - self._began, 1e-9)
        return f"{self._text_bytes / 1e6 / elapsed:.1f} MB/s  {self._tokens / elapsed:,.0f} tokens/s"

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
