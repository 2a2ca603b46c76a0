"""Python's garbage collection, where the run has time for it: each rank's at the same place."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_where_due() -> Iterator[None]:
    """Collect nothing by itself inside: a rank that collects in a step keeps all others waiting."""
    before = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is loaded by now need not be looked at again
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if before:
            gc.enable()


def collect_garbage() -> None:
    """Collect what has been made since the last time."""
    gc.collect()
