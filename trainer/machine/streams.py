"""Standard output and standard error that a run outlives: readers may go away, and disks may be full."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF, errno.ENOTCONN, errno.ECONNRESET)
"""The reader of a pipe has ended, the terminal is closed, the connection is lost."""


class EnduringStream:
    """A text stream whose failures are ignored: no line of a log is worth a trained step."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` if that is still possible."""
        with self._ignoring():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write all lines if that is still possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush if that is still possible."""
        with self._ignoring():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _ignoring(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in GONE:
                self._give_up()
        except ValueError:  # the stream was closed
            pass

    def end(self) -> None:
        """Drop what still cannot be written, since the disk is full."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()
        except ValueError:  # the stream was closed
            pass

    def _give_up(self) -> None:
        """Let what is buffered go nowhere: Python would end with status 120 otherwise."""
        with contextlib.suppress(OSError, ValueError):
            _to_null(self._stream.fileno())


@contextlib.contextmanager
def enduring(*names: str) -> Iterator[None]:
    """Make these streams of `sys` outlive their readers while the block runs."""
    _open_standard_descriptors()
    before = {name: getattr(sys, name) for name in names}
    made = {}
    for name, stream in before.items():
        if stream is None:  # it was closed when the process started
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        made[name] = EnduringStream(stream)
        setattr(sys, name, made[name])
    try:
        yield
    finally:
        for name, stream in before.items():
            made[name].end()
            setattr(sys, name, stream)


def _open_standard_descriptors() -> None:
    """Occupy descriptors 0 to 2 where they are closed, or the next file gets the log of other libraries."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest one that is free


def _to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
