"""A run from its plan to its end: joins the ranks, opens each phase, lets the loop train it."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import torch

from trainer import __version__, distributed, loop
from trainer.checkpoint import commit, portable
from trainer.engine import Engine
from trainer.errors import InfrastructureError
from trainer.health import Signals, Watchdog, clear_stale_locks
from trainer.launcher import World
from trainer.metrics import Metrics, Throughput
from trainer.mixer.loader import Loader
from trainer.model.architecture import resolve
from trainer.model.build import build
from trainer.model.flops import flops_per_token, peak_flops
from trainer.model.trainable import parameter_groups
from trainer.plan import Plan, prepare
from trainer.recipe import dump
from trainer.scheduler.curves import Curve
from trainer.scheduler.state import RunState
from trainer.session import Session
from trainer.sharding import complete, stage

STOPPED = 0


def run(plan: Plan, here: World) -> None:
    """Trains `plan` to its end or until it is asked to stop.

    Raises:
        RewarmError: what went wrong; other ranks may still wait for this one, so the process must end.
    """
    clear_stale_locks(say)
    distributed.start(here)
    plan = _verified(plan, here)
    if here.rank == 0:
        plan.record()
    ...
