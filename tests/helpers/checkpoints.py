"""Small checkpoints for tests: ranks are threads that meet at a barrier."""

import json
import threading
from pathlib import Path

import torch

from tests.helpers.fragments import fragment
from trainer.checkpoint.manifest import Manifest, Position
from trainer.checkpoint.save import Saver
from trainer.storage.fragment import Fragment


class Meeting:
    """An all-gather among threads, as `collectives.background_gather`; a rank that never comes breaks it."""

    def __init__(self, ranks: int, patience_s: float = 10.0) -> None:
        self._values: list = [None] * ranks
        self._barrier = threading.Barrier(ranks, timeout=patience_s)

    def of(self, rank: int):
        def gather(value):
            self._values[rank] = value
            self._barrier.wait()
            values = list(self._values)
            self._barrier.wait()
            return values

        return gather


def position(step: int, world_size: int = 1, **changes) -> Position:
    fields = {
        "step": step,
        "tokens": step * 100,
        "world_size": world_size,
        "stage": 2,
        "adam_step": step,
        "loss_scale": {},
        "state": {"step": step},
        "baseline": {},
        "recipe": "name: x",
        "versions": {},
    }
    return Position(**fields | changes)


def manifest(step: int, **changes) -> Manifest:
    """The manifest of a checkpoint without files."""
    return Manifest(**vars(position(step)), **{"files": {}, "weights": {}} | changes)


def savers(folder: Path, ranks: int = 1, **changes) -> list[Saver]:
    meeting = Meeting(ranks)
    options = {"keep_last": 2, "keep_every": None, "asynchronous": False, **changes}
    return [
        Saver(folder, rank=rank, world_size=ranks, gather=meeting.of(rank), **options)
        for rank in range(ranks)
    ]


def fragments(rank: int = 0) -> list[Fragment]:
    return [fragment(f"w{rank}", 0, (4,), True, {"weight": torch.arange(4.0) + rank})]


def save(folder: Path, step: int, ranks: int = 1, **changes) -> list[str | None]:
    """A whole save; each rank's failure."""
    return save_with(savers(folder, ranks, **changes), step)


def save_with(all_ranks: list[Saver], step: int) -> list[str | None]:
    all_ranks[0].open_directory(step, needed=1)
    threads = [
        threading.Thread(target=one.save, args=(position(step, len(all_ranks)), [fragments(one.rank)]))
        for one in all_ranks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one.wait() for one in all_ranks]


def save_weights(folder: Path, weights: dict[str, torch.Tensor], where: Position, config: dict) -> None:
    """A committed checkpoint of two ranks, each with half of every weight, and the model's config."""
    meeting = Meeting(2)
    options = {"world_size": 2, "keep_last": 99, "keep_every": None, "asynchronous": False}
    both = [Saver(folder, rank=rank, gather=meeting.of(rank), **options) for rank in range(2)]
    both[0].open_directory(where.step, needed=1)
    threads = []
    for rank, one in enumerate(both):
        pieces = []
        for name, value in weights.items():
            half = value.numel() // 2
            part = value.detach().reshape(-1)[rank * half : None if rank else half].clone()
            pieces.append(fragment(name, rank * half, tuple(value.shape), True, {"weight": part}))
        threads.append(threading.Thread(target=one.save, args=(where, [pieces])))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.wait() for one in both] == [None, None]
    (folder / f"step-{where.step:08d}" / "config.json").write_text(json.dumps(config))
