"""A run's numbers: measured, written, shown while it goes on, and read again afterwards."""

from trainer.metrics.progress import Progress
from trainer.metrics.records import Attempt, Record, attempts, done_twice, read
from trainer.metrics.sinks import Metrics, check
from trainer.metrics.throughput import Throughput

__all__ = [
    "Attempt",
    "Metrics",
    "Progress",
    "Record",
    "Throughput",
    "attempts",
    "check",
    "done_twice",
    "read",
]
